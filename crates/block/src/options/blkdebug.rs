//! The rules of `blkdebug` as options: QEMU's `inject-error`.

use super::OptionsError;
use super::reader::Reader;
use crate::accounting::RequestKind;
use crate::filters::blkdebug::Rule;

/// Requests of the default length of a rule's sector.
const SECTOR_BYTES: u64 = 512;

/// Which requests fail, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InjectError {
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

pub(super) fn take_rules(reader: &mut Reader) -> Result<Vec<InjectError>, OptionsError> {
    reader.groups("inject-error")?.into_iter().map(take_rule).collect()
}

fn take_rule(mut reader: Reader) -> Result<InjectError, OptionsError> {
    // The events of format drivers; a rule of this one hits all requests.
    reader.word("event", &[("none", ())])?;
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
    let rule = InjectError {
        iotype: reader.word("iotype", &kinds)?,
        errno: errno as i32,
        sector: reader.number("sector")?,
        once: reader.flag("once")?.unwrap_or(false),
    };
    reader.finish("inject-error")?;
    Ok(rule)
}
