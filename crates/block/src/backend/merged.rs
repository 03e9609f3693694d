//! Requests that a device has merged from several, and takes apart if they fail.

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut, trace_event};

use crate::accounting::RequestKind;
use crate::backend::BlockBackend;
use crate::backend::error_policy::try_once;
use crate::backend::in_flight;
use crate::backend::root::Medium;
use crate::driver::flags::{ReadFlags, WriteFlags};
use crate::io as request_path;

/// The outcome of a merged request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request that was split is not done"]
pub enum Merged {
    /// It succeeded.
    Done,
    /// It failed, perhaps because of one part only. No listener was told and nothing was counted: the
    /// device sends each part by itself, which fails, or not, by itself.
    Split,
}

/// For devices that merge. All of it on the backend's home thread.
///
/// # Errors
/// ECANCELED if the request was held, and [made to end](BlockBackend::report_errors), before it was
/// tried; its parts are not to be tried either.
impl BlockBackend {
    /// [`co_preadv`](Self::co_preadv) of several neighbouring requests.
    #[inline]
    pub fn co_preadv_merged(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<Merged> {
        let bytes = target.len() as u64;
        trace_event!("blk_co_preadv", offset, bytes);
        self.perform_merged(co, RequestKind::Read, (offset, bytes), |medium| {
            request_path::co_preadv(&medium.node.path, co, offset, target, ReadFlags::empty())
        })
    }

    /// [`co_pwritev`](Self::co_pwritev) of several neighbouring requests.
    #[inline]
    pub fn co_pwritev_merged(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<Merged> {
        let bytes = source.len() as u64;
        trace_event!("blk_co_pwritev", offset, bytes);
        self.perform_merged(co, RequestKind::Write, (offset, bytes), |medium| {
            request_path::co_pwritev(self.writable(medium)?, co, offset, source, flags)
        })
    }

    #[inline]
    fn perform_merged(
        &self,
        co: &Co<'_>,
        kind: RequestKind,
        range: (u64, u64),
        mut attempt: impl FnMut(&Medium) -> io::Result<()>,
    ) -> io::Result<Merged> {
        let mut request = self.begin_request(co);
        in_flight::noted(co, &mut request, kind, range, |request| {
            self.account_merged(co, kind, range.1, || {
                self.wait_until_running(co, request)?;
                let tried = try_once(self, request, &mut attempt);
                Ok(tried.map_or(Merged::Split, |()| Merged::Done))
            })
        })
    }
}
