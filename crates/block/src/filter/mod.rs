//! Filters: drivers that pass requests on to one child, and do something on the way.
//!
//! * [`blkdebug`] fails, delays and cuts requests short, by rules;
//! * [`blklogwrites`] logs changes of the child, to build its state at any moment again;
//! * [`CopyOnRead`] writes what is read of backing files to the node itself;
//! * [`throttle`] limits bytes and operations a second, for groups of nodes.
//!
//! A filter has the length and the limits of its child.

pub mod blkdebug;
pub mod blklogwrites;
mod bounce;
mod copy_on_read;
pub mod throttle;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{Co, CoWaker};

pub use copy_on_read::{CopyOnRead, CopyOnReadOptions};

/// Suspends for `delay` on the context's clock.
fn sleep(co: &Co<'_>, delay: Duration) {
    let waker: Rc<Cell<Option<CoWaker>>> = Rc::default();
    let timer = {
        let waker = Rc::clone(&waker);
        co.context().timer(move |_| {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        })
    };
    timer.arm_after(delay);
    co.suspend_for("a delay", |it| waker.set(Some(it)));
}
