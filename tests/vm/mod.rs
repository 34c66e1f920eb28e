//! Virtual machines for the tests: real firmware, GRUB, kernel and systemd under QEMU, driven over
//! the serial line as a person would drive them.
//!
//! [`Host::prepared`] gives a disk that was installed inside a VM; [`Host::boot`] starts a [`Vm`]
//! on an overlay of it; [`Vm::menu`], [`Vm::log_in`] and [`Vm::run`] work with what is on the
//! serial line. Everything waits for an event, with a limit; a failure shows the end of the serial
//! log and where the whole of it is.

mod console;
mod host;
mod image;
mod menu;
pub mod qemu;
pub mod readme;
mod shell;
pub mod store;
mod terminal;

pub use console::Echo;
pub use host::{Host, boot_image};
pub use image::RootImage;
pub use qemu::Vm;
pub use store::say;
