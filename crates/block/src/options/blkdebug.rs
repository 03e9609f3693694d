//! What `blkdebug` does, as options: QEMU's `inject-error`, and constraints.

use super::OptionsError;
use super::error::shorten;
use super::reader::Reader;
use crate::accounting::RequestKind;
use crate::driver::BlockLimits;
use crate::driver::debug_event::DebugEvent;
use crate::driver::permissions::Permissions;
use crate::filter::blkdebug::Rule;

/// Requests of the default length of a rule's sector.
const SECTOR_BYTES: u64 = 512;

/// Which requests fail, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) fn rule(&self) -> Rule {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// `event`: when.
    pub event: DebugEvent,
    /// `state`: only if it is this one then.
    pub state: Option<u64>,
    /// `new_state`: what it is afterwards. At first it is 1.
    pub new_state: u64,
}

/// What a node asks of requests, whatever the one below does, and of the other users of that.
///
/// Sizes are in bytes; 0 is what there would be without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// `take-child-perms`: held of the node below besides what its users need.
    pub take: Permissions,
    /// `unshare-child-perms`: not shared with others.
    pub unshare: Permissions,
}

impl DebugConstraints {
    /// What it takes in one request.
    ///
    /// # Errors
    /// Which option makes no sense, and why.
    pub(crate) fn limits(&self) -> Result<BlockLimits, (&'static str, String)> {
        let align = self.align.max(1);
        let power = |option, value: u32| match value.max(1) {
            value if value.is_power_of_two() => Ok(value.max(align)),
            _ => Err((option, format!("{value} is not a power of two"))),
        };
        let most = |option, value: u32, unit: u32, without: u64| match u64::from(value) {
            0 => Ok(without),
            value if value.is_multiple_of(u64::from(unit)) => Ok(value),
            value => Err((option, format!("{value} is not a multiple of {unit}"))),
        };
        let without = BlockLimits::default();
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

pub(super) fn take_constraints(reader: &mut Reader) -> Result<DebugConstraints, OptionsError> {
    let perms = [
        ("consistent-read", Permissions::CONSISTENT_READ),
        ("write", Permissions::WRITE),
        ("write-unchanged", Permissions::WRITE_UNCHANGED),
        ("resize", Permissions::RESIZE),
    ];
    let mut size = |option| -> Result<u32, OptionsError> {
        let size = reader.size(option)?.unwrap_or(0);
        // QEMU's limit.
        let fits = u32::try_from(size).ok().filter(|size| *size <= i32::MAX as u32);
        fits.ok_or_else(|| reader.invalid(option, format!("{size} is too much")))
    };
    let constraints = DebugConstraints {
        align: size("align")?,
        max_transfer: size("max-transfer")?,
        opt_write_zero: size("opt-write-zero")?,
        max_write_zero: size("max-write-zero")?,
        opt_discard: size("opt-discard")?,
        max_discard: size("max-discard")?,
        take: reader.words("take-child-perms", &perms)?.into_iter().collect(),
        unshare: reader.words("unshare-child-perms", &perms)?.into_iter().collect(),
    };
    constraints.limits().map_err(|(option, why)| reader.invalid(option, why))?;
    Ok(constraints)
}

pub(super) fn take_rules(reader: &mut Reader) -> Result<Vec<InjectError>, OptionsError> {
    reader.groups("inject-error")?.into_iter().map(take_rule).collect()
}

fn take_rule(mut reader: Reader) -> Result<InjectError, OptionsError> {
    let event = take_event(&mut reader)?.flatten();
    let state = take_state(&mut reader, "state")?;
    let kinds = [
        ("read", RequestKind::Read),
        ("write", RequestKind::Write),
        ("write-zeroes", RequestKind::WriteZeroes),
        ("discard", RequestKind::Discard),
        ("flush", RequestKind::Flush),
    ];
    let errno = reader.number("errno")?.unwrap_or(libc::EIO as u64);
    // What the kernel's own error numbers may be.
    if !(1..4096).contains(&errno) {
        return Err(reader.invalid("errno", "expected a number from 1 to 4095"));
    }
    // What fails here fails at once anyway.
    reader.flag("immediately")?;
    let rule = InjectError {
        event,
        state,
        iotype: reader.word("iotype", &kinds)?,
        errno: errno as i32,
        sector: reader.number("sector")?,
        once: reader.flag("once")?.unwrap_or(false),
    };
    reader.finish("inject-error")?;
    Ok(rule)
}

/// An event; of `none`, none.
fn take_event(reader: &mut Reader) -> Result<Option<Option<DebugEvent>>, OptionsError> {
    let Some(name) = reader.text("event")? else { return Ok(None) };
    match DebugEvent::named(&name) {
        Some(event) => Ok(Some(Some(event))),
        None if name == "none" => Ok(Some(None)),
        None => Err(reader.invalid("event", format!("'{}' is no event", shorten(&name)))),
    }
}

/// States are those of QEMU, where 0 is any.
fn take_state(reader: &mut Reader, option: &str) -> Result<Option<u64>, OptionsError> {
    let state = reader.number(option)?;
    if state.is_some_and(|state| i32::try_from(state).is_err()) {
        return Err(reader.invalid(option, format!("expected a number from 0 to {}", i32::MAX)));
    }
    Ok(state.filter(|state| *state != 0))
}

pub(super) fn take_states(reader: &mut Reader) -> Result<Vec<SetState>, OptionsError> {
    reader.groups("set-state")?.into_iter().map(take_set_state).collect()
}

fn take_set_state(mut reader: Reader) -> Result<SetState, OptionsError> {
    let event = take_event(&mut reader)?;
    let event = reader.required("event", event)?;
    let event = event.ok_or_else(|| reader.invalid("event", "'none' never happens"))?;
    let state = take_state(&mut reader, "state")?;
    let new_state = reader.number("new_state")?;
    let new_state = reader.required("new_state", new_state)?;
    if i32::try_from(new_state).is_err() {
        let why = format!("expected a number from 0 to {}", i32::MAX);
        return Err(reader.invalid("new_state", why));
    }
    reader.finish("set-state")?;
    Ok(SetState { event, state, new_state })
}
