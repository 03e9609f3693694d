//! Style as a test: what the project wants of its own tree, checked on every file of it.
//!
//! * `layout`: what lies where, dead files, versions, fenced unsafe code;
//! * `source`: lengths, unfinished code, white space;
//! * `docs`: links;
//! * `imports`, `houses`: which crate and module may import which;
//! * `prose`: words that make a reader guess;
//! * `contract`: the table of the contract against the tests in the tree;
//! * `qcow2`, `jobs`: those of the format qcow2 and of jobs, likewise.
//!
//! Limits are ratchets: lower them when the tree allows, do not raise them.
#![forbid(unsafe_code)]

mod contract;
mod docs;
mod houses;
mod imports;
mod layout;
mod lines;
mod prose;
mod rust;
mod source;
mod tree;
