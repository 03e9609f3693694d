//! `authz-list`: rules, of which the first that fits decides.

use serde::{Deserialize, Serialize};

use super::{Authz, Decides};
use crate::error::DaemonError;
use crate::objects::object_type::{ObjectPlace, ObjectType};

/// The type `authz-list`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthzListType;

/// Rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct AuthzListOptions {
    /// `policy`: what holds for a name that no rule fits; deny by default.
    #[serde(default)]
    pub policy: Policy,
    /// `rules`.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// What becomes of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It is refused.
    #[default]
    Deny,
    /// It is let in.
    Allow,
}

/// What holds for some names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Rule {
    /// `match`: a name, or a pattern.
    #[serde(rename = "match")]
    pub pattern: String,
    /// `policy`.
    pub policy: Policy,
    /// `format`: how to read `match`; exact by default.
    #[serde(default)]
    pub format: Format,
}

/// How names are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// As they are.
    #[default]
    Exact,
    /// `*` stands for any letters, `?` for one.
    Glob,
}

impl Decides for AuthzListOptions {
    fn allows(&self, identity: &str) -> bool {
        let fits = |rule: &&Rule| match rule.format {
            Format::Exact => rule.pattern == identity,
            Format::Glob => matches(&rule.pattern, identity),
        };
        let rule = self.rules.iter().find(fits);
        rule.map_or(self.policy, |rule| rule.policy) == Policy::Allow
    }
}

/// Whether a pattern is one of a text: in time of their product, whatever they are.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut position) = (0, 0);
    // Behind the last star, and from where on it was last tried.
    let mut star = None;
    while position < text.len() {
        match pattern.get(at) {
            Some('*') => {
                at += 1;
                star = Some((at, position));
            }
            Some(letter) if *letter == '?' || *letter == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match &mut star {
                Some((behind, from)) => {
                    *from += 1;
                    (at, position) = (*behind, *from);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

impl ObjectType for AuthzListType {
    const NAME: &'static str = "authz-list";
    type Options = AuthzListOptions;
    type Object = Authz;

    fn co_make(
        &self,
        _: &ObjectPlace<'_, '_>,
        options: &AuthzListOptions,
    ) -> Result<Authz, DaemonError> {
        Ok(Authz::new(options.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_the_whole_name() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("CN=*", "CN=laptop", true),
            ("CN=*", "O=x,CN=laptop", false),
            ("*CN=?aptop*", "O=x,CN=laptop,C=GB", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXcXb", false),
            ("**a", "ba", true),
            ("[a]", "a", false),
            ("\u{fc}?", "\u{fc}\u{fc}", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        let (pattern, text) = ("*a".repeat(200) + "b", "a".repeat(4000));
        assert!(!matches(&pattern, &text));
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |pattern: &str, policy, format| Rule { pattern: pattern.into(), policy, format };
        let list = AuthzListOptions {
            policy: Policy::Deny,
            rules: vec![
                rule("CN=bob", Policy::Deny, Format::Exact),
                rule("CN=*", Policy::Allow, Format::Glob),
                rule("O=*", Policy::Allow, Format::Exact),
            ],
        };
        let allowed = ["CN=bob", "CN=alice", "O=x", "O=*"].map(|identity| list.allows(identity));
        assert_eq!(allowed, [false, true, false, true]);
    }
}
