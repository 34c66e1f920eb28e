//! How the rest of the program touches the machine: commands, files, devices, the log, the lock.

mod action;
pub mod automount;
mod cgroup;
pub mod cmd;
pub mod files;
pub mod firmware;
pub mod flush;
pub mod holders;
pub mod interrupt;
pub mod journal;
pub mod limited;
pub mod lock;
pub mod logger;
pub mod mounts;
pub mod namespaces;
pub mod probe;
pub mod process;
pub mod progress;
pub mod rooted;
pub mod run;
pub mod sandbox;
mod seccomp;
mod steps;
pub mod syscalls;
pub mod transaction;

/// The version of all that is written as JSON for other programs. It grows when a field changes its meaning or goes
/// away. `src/admin/schemas` says what each document holds.
pub const JSON_VERSION: u32 = 1;
