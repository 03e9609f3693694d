//! Options of `blkdebug`: QEMU's `inject-error`, and constraints.

use coblk_qapi::{FromParts, Parts, Unsupported};
use serde::de::{Error, MapAccess};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BlkDebug, Rule, Rules};
use crate::accounting::RequestKind;
use crate::driver::BlockLimits;
use crate::driver::debug_event::DebugEvent;
use crate::driver::permissions::Permissions;
use crate::driver::role::ChildRole;
use crate::options::{DriverConfig, DriverOptions, NodeRef};
use crate::registry::{Driver, OpenError, Opening};

/// Requests of the default length of a rule's sector.
const SECTOR_BYTES: u64 = 512;

/// Options of `blkdebug`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BlkDebugOptions {
    /// `image`: the child.
    pub image: NodeRef,
    /// `inject-error`: which requests fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inject_error: Vec<InjectError>,
    /// `set-state`: what happens before, for rules that ask for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_state: Vec<SetState>,
    /// Constraints on requests, and on other users of the child.
    #[serde(flatten)]
    pub constraints: DebugConstraints,
}

/// Members that are no constraints.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    image: NodeRef,
    #[serde(default)]
    inject_error: Vec<InjectError>,
    #[serde(default)]
    set_state: Vec<SetState>,
    #[serde(rename = "config")]
    _config: Option<Unsupported>,
}

impl FromParts for BlkDebugOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<Self, M::Error> {
        let Fields { image, inject_error, set_state, .. } = parts.take()?;
        Ok(BlkDebugOptions { image, inject_error, set_state, constraints: parts.take()? })
    }
}

impl<'de> Deserialize<'de> for BlkDebugOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        coblk_qapi::parts(deserializer)
    }
}

impl BlkDebugOptions {
    /// For a child, of which nothing is asked yet.
    pub fn new(image: impl Into<NodeRef>) -> BlkDebugOptions {
        let (image, constraints) = (image.into(), DebugConstraints::default());
        BlkDebugOptions { image, inject_error: Vec::new(), set_state: Vec::new(), constraints }
    }
}

impl DriverOptions for BlkDebugOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("image", &mut self.image);
    }
}

impl From<BlkDebugOptions> for DriverConfig {
    fn from(options: BlkDebugOptions) -> DriverConfig {
        DriverConfig::new("blkdebug", options)
    }
}

impl Driver for BlkDebug {
    const NAMES: &'static [&'static str] = &["blkdebug"];
    type Options = BlkDebugOptions;

    fn co_open(
        opening: &Opening<'_, '_>,
        options: &BlkDebugOptions,
    ) -> Result<BlkDebug, OpenError> {
        let BlkDebugOptions { image, inject_error, set_state, constraints } = options;
        let rules = Rules::new(0);
        for inject in inject_error {
            rules.add(inject.rule());
        }
        for SetState { event, state, new_state } in set_state {
            rules.set_state_when(*event, *state, *new_state);
        }
        let (take, unshare) = (constraints.take, constraints.unshare);
        let limits = constraints.limits();
        let limits = limits.map_err(|(option, why)| OpenError::option(option, why))?;
        let image = opening.co_child("image", ChildRole::FILTER, image)?;
        Ok(BlkDebug { limits, take, unshare, ..BlkDebug::on(image, rules) })
    }
}

/// Which requests fail, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Injection", into = "Injection")]
#[non_exhaustive]
pub struct InjectError {
    /// `event`: from when on; from the beginning by default, and if it is `none`.
    pub event: Option<DebugEvent>,
    /// `state`: only if the state is this one then.
    pub state: Option<u64>,
    /// `iotype`: of which kind; of any by default.
    pub iotype: Option<RequestKind>,
    /// `errno`: with which; EIO by default.
    pub errno: i32,
    /// `sector`: only those that touch this sector of 512 bytes.
    pub sector: Option<u64>,
    /// `once`: only the first. Off by default.
    pub once: bool,
}

impl InjectError {
    /// All requests fail, with this errno. Fields say which do not.
    pub fn new(errno: i32) -> InjectError {
        InjectError { event: None, state: None, iotype: None, errno, sector: None, once: false }
    }
}

/// `inject-error`, as it is written.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Injection {
    #[serde(default = "from_the_beginning")]
    event: DebugEvent,
    #[serde(default, deserialize_with = "state")]
    state: Option<u64>,
    iotype: Option<RequestKind>,
    #[serde(default = "eio", deserialize_with = "errno")]
    errno: i32,
    sector: Option<u64>,
    #[serde(default)]
    once: bool,
    /// What fails here fails at once anyway.
    #[serde(rename = "immediately", skip_serializing)]
    _immediately: Option<bool>,
}

fn from_the_beginning() -> DebugEvent {
    DebugEvent::None
}

fn eio() -> i32 {
    libc::EIO
}

/// Reads an errno: one of the kernel's own numbers.
fn errno<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let errno = i32::deserialize(deserializer)?;
    if !(1..4096).contains(&errno) {
        return Err(D::Error::custom("expected a number from 1 to 4095"));
    }
    Ok(errno)
}

/// States are those of QEMU, where 0 is any.
fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    new_state(deserializer).map(|state| Some(state).filter(|state| *state != 0))
}

fn new_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let state = i64::deserialize(deserializer)?;
    if !(0..=i64::from(i32::MAX)).contains(&state) {
        return Err(D::Error::custom(format!("expected a number from 0 to {}", i32::MAX)));
    }
    Ok(state.unsigned_abs())
}

/// One that happens.
fn event<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DebugEvent, D::Error> {
    match DebugEvent::deserialize(deserializer)? {
        DebugEvent::None => Err(D::Error::custom("'none' never happens")),
        event => Ok(event),
    }
}

impl From<Injection> for InjectError {
    fn from(injection: Injection) -> InjectError {
        let Injection { event, state, iotype, errno, sector, once, .. } = injection;
        let event = Some(event).filter(|event| *event != DebugEvent::None);
        InjectError { event, state, iotype, errno, sector, once }
    }
}

impl From<InjectError> for Injection {
    fn from(inject: InjectError) -> Injection {
        let InjectError { event, state, iotype, errno, sector, once } = inject;
        let event = event.unwrap_or(DebugEvent::None);
        Injection { event, state, iotype, errno, sector, once, _immediately: None }
    }
}

impl InjectError {
    fn rule(&self) -> Rule {
        let mut rule = Rule::fail(self.errno);
        if let Some(event) = self.event {
            rule = rule.when(event);
        }
        if let Some(state) = self.state {
            rule = rule.in_state(state);
        }
        if let Some(kind) = self.iotype {
            rule = rule.on(kind);
        }
        if let Some(sector) = self.sector {
            let start = sector.saturating_mul(SECTOR_BYTES);
            rule = rule.within(start..start.saturating_add(SECTOR_BYTES));
        }
        if self.once { rule.once() } else { rule }
    }
}

/// `set-state`: what changes the state of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct SetState {
    /// `event`: when.
    #[serde(deserialize_with = "event")]
    pub event: DebugEvent,
    /// `state`: only if it is this one then.
    #[serde(default, deserialize_with = "state")]
    pub state: Option<u64>,
    /// `new_state`: what it is afterwards. At first it is 1.
    #[serde(deserialize_with = "new_state")]
    pub new_state: u64,
}

impl SetState {
    /// The event sets this state, whatever it was.
    pub fn new(event: DebugEvent, new_state: u64) -> SetState {
        SetState { event, state: None, new_state }
    }
}

/// Constraints of a node on requests, whatever its child does, and on other users of the child.
///
/// Sizes are in bytes; 0 leaves the child's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct DebugConstraints {
    /// `align`: offsets and lengths of reads and writes are multiples of this power of two.
    pub align: u32,
    /// `max-transfer`: the longest read or write.
    pub max_transfer: u32,
    /// `opt-write-zero`: those of write-zeroes are multiples of this.
    pub opt_write_zero: u32,
    /// `max-write-zero`: the longest.
    pub max_write_zero: u32,
    /// `opt-discard`: those of discards are multiples of this.
    pub opt_discard: u32,
    /// `max-discard`: the longest.
    pub max_discard: u32,
    /// `take-child-perms`: held on the child besides what its users need.
    #[serde(rename = "take-child-perms", with = "permissions")]
    #[serde(skip_serializing_if = "Permissions::is_empty")]
    pub take: Permissions,
    /// `unshare-child-perms`: not shared with other users of the child.
    #[serde(rename = "unshare-child-perms", with = "permissions")]
    #[serde(skip_serializing_if = "Permissions::is_empty")]
    pub unshare: Permissions,
}

impl DebugConstraints {
    /// The limits of one request.
    ///
    /// # Errors
    /// Which option makes no sense, and why.
    fn limits(&self) -> Result<BlockLimits, (&'static str, String)> {
        let align = self.align.max(1);
        let power = |option, value: u32| match value.max(1) {
            // QEMU's limit.
            value if value > i32::MAX as u32 => Err((option, format!("{value} is too much"))),
            value if value.is_power_of_two() => Ok(value.max(align)),
            _ => Err((option, format!("{value} is not a power of two"))),
        };
        let most = |option, value: u32, unit: u32, without: u64| match u64::from(value) {
            0 => Ok(without),
            // QEMU's limit.
            value if value > i32::MAX as u64 => Err((option, format!("{value} is too much"))),
            value if value.is_multiple_of(u64::from(unit)) => Ok(value),
            value => Err((option, format!("{value} is not a multiple of {unit}"))),
        };
        // It passes flags on, whatever else it asks for.
        let without = BlockLimits::passing_on();
        let request_alignment = power("align", self.align)?;
        let zeroes = power("opt-write-zero", self.opt_write_zero)?;
        let discards = power("opt-discard", self.opt_discard)?;
        if align > MAX_ALIGN {
            return Err(("align", format!("{align} is more than {MAX_ALIGN}")));
        }
        Ok(BlockLimits {
            request_alignment,
            max_transfer: most("max-transfer", self.max_transfer, align, without.max_transfer)?,
            pwrite_zeroes_alignment: zeroes,
            max_pwrite_zeroes: most("max-write-zero", self.max_write_zero, zeroes, u64::MAX)?,
            pdiscard_alignment: discards,
            max_pdiscard: most("max-discard", self.max_discard, discards, u64::MAX)?,
            ..without
        })
    }
}

/// The largest block; what is padded has to fit into memory.
const MAX_ALIGN: u32 = 1 << 20;

/// Permissions as a list of words.
mod permissions {
    use super::{Deserialize, Deserializer, Permissions, Serialize, Serializer};

    #[derive(Clone, Copy, Deserialize, Serialize)]
    #[serde(rename_all = "kebab-case")]
    enum Word {
        ConsistentRead,
        Write,
        WriteUnchanged,
        Resize,
    }

    const WORDS: [(Word, Permissions); 4] = [
        (Word::ConsistentRead, Permissions::CONSISTENT_READ),
        (Word::Write, Permissions::WRITE),
        (Word::WriteUnchanged, Permissions::WRITE_UNCHANGED),
        (Word::Resize, Permissions::RESIZE),
    ];

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Permissions, D::Error> {
        let words = Vec::<Word>::deserialize(from)?;
        Ok(words.into_iter().map(|word| WORDS[word as usize].1).collect())
    }

    pub fn serialize<S: Serializer>(held: &Permissions, to: S) -> Result<S::Ok, S::Error> {
        let words = WORDS.iter().filter(|(_, permission)| held.contains(*permission));
        to.collect_seq(words.map(|(word, _)| word))
    }
}
