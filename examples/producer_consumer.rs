//! Two coroutines and a main flow that take turns: the smallest program that needs three stacks.
//!
//! ```text
//! cargo run --example producer_consumer
//! ```
//!
//! Each line is indented by the flow that prints it. A coroutine's local variables (here: how far
//! its loop has come) are where it left them when it is resumed, because its stack is.

use std::cell::Cell;
use std::rc::Rc;

use coblk::coroutine::{Coroutine, CoroutineState};

fn main() {
    println!("main           producer       consumer");
    let counter = Rc::new(Cell::new(None));
    let shop = Rc::clone(&counter);

    let producer = Coroutine::new("producer", move |suspender| {
        for loaf in ["rye", "wheat", "spelt"] {
            println!("{:15}bakes {loaf}", "");
            counter.set(Some(loaf));
            suspender.suspend(); // back to main
        }
        println!("{:15}goes home", "");
    });
    let consumer = Coroutine::new("consumer", move |suspender| {
        let mut eaten = 0;
        while let Some(loaf) = shop.take() {
            println!("{:30}eats {loaf}", "");
            eaten += 1;
            suspender.suspend(); // back to main
        }
        println!("{:30}had {eaten}, goes home", "");
    });

    // Creating a coroutine ran nothing. Resuming runs it until it suspends or returns.
    println!("opens");
    while producer.resume() == CoroutineState::Suspended {
        println!("serves");
        consumer.resume();
    }
    assert_eq!(consumer.resume(), CoroutineState::Terminated);
    println!("closes");
}
