//! Virtual machines for the tests: real firmware, GRUB, kernel and systemd under QEMU, driven over
//! the serial line as a person would drive them.
//!
//! [`Host::running`] gives a host that runs, within a second: it was saved after it had booted. A
//! scenario whose subject is the boot takes the installed disk from [`Host::prepared`] and switches it on
//! with [`HostDisk::boot`]. [`Rescue`] is another system that has the disk of a host beside its own.
//! [`Vm::menu`], [`Vm::log_in`] and [`Vm::run`] work with what is on the serial line. Everything waits for
//! an event, with a limit; a failure shows the end of the serial log and where the whole of it is.

mod console;
pub mod cpio;
mod emulator;
pub mod examine;
pub mod example;
pub mod guest;
mod host;
mod image;
mod menu;
mod monitor;
pub mod qemu;
pub mod readme;
mod rescue;
mod shell;
pub mod store;
pub mod tally;
mod terminal;
pub mod verbs;
pub mod web;
pub mod write_log;

pub use console::Echo;
pub use emulator::{PANIC, forgiven};
pub use host::{Host, HostDisk, Loader, OPTIONS, Saved, boot_image, boot_root};
pub use image::{RootImage, debian, package, registry_programs};
pub use qemu::{Disk, Heard, Medium, Start, Vm, convert_to_raw, create_overlay};
pub use rescue::Rescue;
pub use shell::Output;
pub use store::{be_quiet, clear_scratch, say, scratch};
