//! Virtual machines for the tests: real firmware, GRUB, kernel and systemd under QEMU, driven over
//! the serial line as a person would drive them.
//!
//! [`Host::prepared`] gives a disk that was installed inside a VM; [`Host::boot`] starts a [`Vm`]
//! on an overlay of it; [`Vm::menu`], [`Vm::log_in`] and [`Vm::run`] work with what is on the
//! serial line. Everything waits for an event, with a limit; a failure shows the end of the serial
//! log and where the whole of it is.

mod console;
pub mod examine;
mod host;
mod image;
mod menu;
mod monitor;
pub mod qemu;
pub mod readme;
mod rescue;
mod shell;
pub mod store;
mod terminal;
pub mod verbs;
pub mod write_log;

pub use console::{Echo, PANIC};
pub use host::{Host, HostDisk, Loader, boot_image};
pub use image::RootImage;
pub use qemu::{Disk, Vm, convert_to_raw, create_overlay};
pub use rescue::Rescue;
pub use store::{say, scratch};
