//! Crates that switch stacks: corosensei, on which ours stands, without anything around it; and
//! generator.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};
use generator::{Generator, Gn};

use crate::measure::{Lap, lap};

type Bare = Coroutine<(), (), (), DefaultStack>;

/// A coroutine that suspends for as long as it is given `true`. corosensei unwinds those that are
/// dropped while they are suspended only with a feature that ours does without, so this one is let
/// run to its end.
struct Looping(Coroutine<bool, (), (), DefaultStack>);

impl Drop for Looping {
    fn drop(&mut self) {
        self.0.resume(false);
    }
}

/// Bare corosensei: resume and suspend.
pub fn corosensei_resume_suspend() -> impl FnMut(u64) -> io::Result<Lap> {
    let mut coroutine = Looping(Coroutine::new(|yielder: &Yielder<bool, ()>, mut go_on| {
        while go_on {
            go_on = yielder.suspend(());
        }
    }));
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                coroutine.0.resume(true);
            }
        }))
    }
}

/// Bare corosensei: create, run and end on a stack that is kept.
pub fn corosensei_create_run_end() -> impl FnMut(u64) -> io::Result<Lap> {
    let mut kept = DefaultStack::new(1 << 20).ok();
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                let Some(stack) = kept.take() else { return };
                let mut coroutine = Bare::with_stack(stack, |_, ()| ());
                coroutine.resume(());
                kept = Some(coroutine.into_stack());
            }
        }))
    }
}

/// Bare corosensei: coroutines that create and resume each other, `depth` deep, on stacks that are
/// kept.
pub fn corosensei_nesting(depth: u64) -> impl FnMut(u64) -> io::Result<Lap> {
    fn nest(depth: u64, stacks: &Rc<RefCell<Vec<DefaultStack>>>) {
        if depth == 0 {
            return;
        }
        let Some(stack) = stacks.borrow_mut().pop() else { return };
        let inner = Rc::clone(stacks);
        let mut coroutine = Bare::with_stack(stack, move |_, ()| nest(depth - 1, &inner));
        coroutine.resume(());
        stacks.borrow_mut().push(coroutine.into_stack());
    }
    let stacks: Vec<_> = (0..depth).map_while(|_| DefaultStack::new(1 << 20).ok()).collect();
    let stacks = Rc::new(RefCell::new(stacks));
    move |ops| {
        let passes = ops.div_ceil(depth);
        Ok(lap(passes * depth, || (0..passes).for_each(|_| nest(depth, &stacks))))
    }
}

/// Crate generator: resume and suspend.
pub fn generator_resume_suspend() -> impl FnMut(u64) -> io::Result<Lap> {
    let mut generator: Generator<'static, (), ()> = Gn::new_scoped(|mut scope| {
        loop {
            scope.yield_(());
        }
    });
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                generator.resume();
            }
        }))
    }
}

/// Crate generator: create, run and end on a stack that is kept.
pub fn generator_create_run_end() -> impl FnMut(u64) -> io::Result<Lap> {
    let mut generator: Generator<'static, (), ()> = Gn::new_scoped(|_| ());
    generator.resume();
    move |ops| {
        Ok(lap(ops, || {
            for _ in 0..ops {
                generator.scoped_init(|_| ());
                generator.resume();
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_peers_run() {
        assert_eq!(corosensei_resume_suspend()(10).unwrap().ops, 10);
        assert_eq!(corosensei_create_run_end()(10).unwrap().ops, 10);
        assert_eq!(corosensei_nesting(10)(15).unwrap().ops, 20);
        assert_eq!(generator_resume_suspend()(10).unwrap().ops, 10);
        assert_eq!(generator_create_run_end()(10).unwrap().ops, 10);
    }
}
