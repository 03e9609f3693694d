//! Deferred calls: work that is worth doing once for many requests, such as submitting to a ring
//! or telling a guest (contract: C73).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;

use super::AioContext;
use crate::panics::Culprit;

/// One deferred call; function and argument are its identity.
struct Call {
    function: usize,
    argument: Rc<dyn Any>,
    run: Box<dyn FnOnce(&AioContext)>,
}

/// The calls that a context has deferred.
#[derive(Default)]
pub(crate) struct PlugState {
    depth: Cell<usize>,
    calls: RefCell<Vec<Call>>,
}

/// A section in which deferred calls wait; see [`AioContext::plug`].
#[must_use = "the section ends when this is dropped"]
pub struct Plug<'a> {
    ctx: &'a AioContext,
    home: PhantomData<*mut ()>,
}

impl AioContext {
    /// Begins a section in which [`defer_call`](Self::defer_call) waits. Sections nest; the calls
    /// run at the end of the outermost one.
    ///
    /// A section must not be held across a suspension: it would hold back the calls of everything
    /// else on the loop.
    pub fn plug(&self) -> Plug<'_> {
        let plug = &self.inner().plug;
        plug.depth.set(plug.depth.get() + 1);
        Plug { ctx: self, home: PhantomData }
    }

    /// Calls `function` with `argument`: at once outside a section, at the end of the outermost
    /// section inside one, and then once for the same function and argument (contract: C73). A
    /// panic of one does not keep the others from being called; it is the loop's
    /// ([`PanicPolicy`](crate::PanicPolicy)).
    pub fn defer_call<T: 'static>(&self, function: fn(&AioContext, &T), argument: &Rc<T>) {
        let plug = &self.inner().plug;
        if plug.depth.get() == 0 {
            return function(self, argument);
        }
        let mut calls = plug.calls.borrow_mut();
        let same = |call: &Call| {
            call.function == function as usize
                && std::ptr::addr_eq(Rc::as_ptr(&call.argument), Rc::as_ptr(argument))
        };
        if !calls.iter().any(same) {
            let captured = Rc::clone(argument);
            calls.push(Call {
                function: function as usize,
                argument: Rc::clone(argument) as Rc<dyn Any>,
                run: Box::new(move |ctx| function(ctx, &captured)),
            });
        }
    }
}

impl Drop for Plug<'_> {
    fn drop(&mut self) {
        let plug = &self.ctx.inner().plug;
        plug.depth.set(plug.depth.get() - 1);
        if plug.depth.get() > 0 {
            return;
        }
        let calls = std::mem::take(&mut *plug.calls.borrow_mut());
        let calls = calls.into_iter().map(|call| || (call.run)(self.ctx));
        self.ctx.inner().call_all(Culprit::Other("a deferred call"), calls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(_ctx: &AioContext, counter: &Cell<u32>) {
        counter.set(counter.get() + 1);
    }

    fn count_ten(_ctx: &AioContext, counter: &Cell<u32>) {
        counter.set(counter.get() + 10);
    }

    #[test]
    fn c73_deferred_calls_run_once_at_the_outermost_end() {
        let ctx = AioContext::for_test().unwrap();
        let (a, b) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        ctx.defer_call(count, &a);
        assert_eq!(a.get(), 1, "immediate outside a section");
        let outer = ctx.plug();
        let inner = ctx.plug();
        ctx.defer_call(count, &a);
        ctx.defer_call(count, &a);
        ctx.defer_call(count_ten, &a);
        ctx.defer_call(count, &b);
        drop(inner);
        assert_eq!((a.get(), b.get()), (1, 0), "not at an inner end");
        drop(outer);
        assert_eq!((a.get(), b.get()), (12, 1), "once for each function and argument");
        ctx.defer_call(count, &b);
        assert_eq!(b.get(), 2, "immediate again");
    }
}
