//! How the rest of the program touches the machine: commands, files, devices, the log, the lock.

pub mod changes;
pub mod cmd;
pub mod flush;
pub mod lock;
pub mod logger;
pub mod mounts;
pub mod probe;
pub mod progress;
