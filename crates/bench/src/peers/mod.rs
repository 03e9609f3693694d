//! Those we are compared with: other ways to switch stacks, QEMU, servers of blocks, and bare loops as the
//! limit of what can be had.

pub mod bare;
pub mod coroutines;
pub mod fio_rbd;
pub mod programs;
pub mod qemu_img;
pub mod qmp;
pub mod server;
pub mod stranger;
pub mod swapcontext;
pub mod uring;
