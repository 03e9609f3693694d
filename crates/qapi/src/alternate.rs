//! [`WordOrObject`]: a parameter that is one of some words, or an object.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use crate::parts::Parts;

/// The name by which a deserializer knows such a type. The one that writes down schemas has both read.
pub const WORD_OR_OBJECT: &str = "coblk_qapi::WordOrObject";

/// A type that is written as one of some words, or as an object: QAPI's alternates of an enum and a struct.
///
/// ```
/// use coblk_qapi::{WordOrObject, word_or_object};
/// use serde::{Deserialize, Deserializer};
///
/// #[derive(Debug, PartialEq)]
/// struct Level(u32);
///
/// #[derive(Deserialize)]
/// #[serde(rename_all = "lowercase")]
/// enum Word {
///     Low,
///     High,
/// }
///
/// #[derive(Deserialize)]
/// struct Exact {
///     level: u32,
/// }
///
/// impl WordOrObject for Level {
///     const NAME: &'static str = "Level";
///     type Word = Word;
///     type Object = Exact;
///
///     fn of_word(word: Word) -> Level {
///         Level(if matches!(word, Word::Low) { 1 } else { 9 })
///     }
///
///     fn of_object(object: Exact) -> Level {
///         Level(object.level)
///     }
/// }
///
/// impl<'de> Deserialize<'de> for Level {
///     fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Level, D::Error> {
///         word_or_object(deserializer)
///     }
/// }
///
/// #[derive(Deserialize)]
/// struct Options {
///     level: Level,
/// }
///
/// let read = |text| coblk_qapi::from_argument::<Options>(text, "x").map(|it| it.level.0);
/// assert_eq!(read("level=high")?, 9);
/// assert_eq!(read("level.level=5")?, 5);
/// let error = read("level=middle").unwrap_err();
/// assert!(error.to_string().starts_with("Parameter 'level' does not accept value 'middle'"));
/// # Ok::<(), coblk_qapi::Error>(())
/// ```
pub trait WordOrObject: Sized {
    /// QAPI's name of the type, for messages.
    const NAME: &'static str;
    /// The words.
    type Word: for<'de> Deserialize<'de>;
    /// The object.
    type Object: for<'de> Deserialize<'de>;

    /// The value that a word means.
    fn of_word(word: Self::Word) -> Self;

    /// The value that an object means.
    fn of_object(object: Self::Object) -> Self;
}

/// The `Deserialize` of such a type. Only the deserializers of this crate know of it.
///
/// # Errors
/// What is wrong.
pub fn word_or_object<'de, T: WordOrObject, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_newtype_struct(WORD_OR_OBJECT, Either(PhantomData))
}

struct Either<T>(PhantomData<T>);

impl<'de, T: WordOrObject> Visitor<'de> for Either<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::NAME)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, it: D) -> Result<T, D::Error> {
        it.deserialize_any(self)
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<T, E> {
        T::Word::deserialize(word.into_deserializer()).map(T::of_word)
    }

    fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<T, M::Error> {
        Parts::new(members).take().map(T::of_object)
    }

    /// Both, one after the other, for a schema.
    fn visit_seq<S: SeqAccess<'de>>(self, mut both: S) -> Result<T, S::Error> {
        let missing = || serde::de::Error::custom("there is neither a word nor an object");
        let word = both.next_element()?.ok_or_else(missing)?;
        drop(both.next_element::<T::Object>()?);
        Ok(T::of_word(word))
    }
}
