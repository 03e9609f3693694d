//! Coroutines that wait for futures of an async crate, while others go on.
//!
//! ```text
//! cargo run --example async_in_coroutine
//! ```
//!
//! The crate is async-channel, which knows no runtime: its futures only want to be polled and woken.
//! `co.block_on` does both. To the coroutine it looks like a blocking call; the loop goes on meanwhile,
//! and the future may be woken from the same thread or from another one. No runtime is involved.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;

use async_channel::{Receiver, Sender};
use coblk::{AioContext, Co};

fn main() -> std::io::Result<()> {
    let ctx = AioContext::new()?;
    // Room for two orders, so the faster side has to wait.
    let (orders, counter) = async_channel::bounded(2);
    let kitchen_open = Rc::new(Cell::new(true));

    // One coroutine orders ...
    let by_telephone = orders.clone();
    ctx.spawn("guest", move |co| order(co, &orders, &["soup", "fish", "rice", "cake"]));
    // ... another one of the same thread serves ...
    let open = Rc::clone(&kitchen_open);
    ctx.spawn("kitchen", move |co| {
        cook(co, &counter);
        open.set(false);
    });
    // ... and one that has nothing to do with all that, and is not held up.
    let (open, turns) = (Rc::clone(&kitchen_open), Rc::new(Cell::new(0)));
    let own = Rc::clone(&turns);
    ctx.spawn("waiter", move |co| {
        while open.get() {
            own.set(own.get() + 1);
            co.yield_now();
        }
    });

    for coroutine in ctx.coroutines() {
        println!("{:20}'{}' waits for {}", "", coroutine.name, coroutine.waits_for);
    }
    // A caller orders from another thread, where a call may simply block.
    let caller = thread::spawn(move || {
        for dish in ["pizza", "salad"] {
            by_telephone.send_blocking(dish).expect("the kitchen is open");
        }
    });
    ctx.run_until(|| !kitchen_open.get());
    caller.join().expect("the caller hangs up");
    println!("the waiter had {}", if turns.get() > 1 { "many turns" } else { "no turn" });
    Ok(())
}

fn order(co: &Co<'_>, orders: &Sender<&'static str>, dishes: &[&'static str]) {
    for dish in dishes {
        // Suspends while there is no room.
        co.block_on(orders.send(dish)).expect("the kitchen is open");
        println!("guest orders {dish}");
    }
}

/// Ends when all senders of orders are gone.
fn cook(co: &Co<'_>, counter: &Receiver<&'static str>) {
    while let Ok(dish) = co.block_on(counter.recv()) {
        println!("{:20}kitchen serves {dish}", "");
    }
}
