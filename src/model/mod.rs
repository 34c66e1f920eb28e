//! What a host has and what it should have. No input or output happens here.

pub mod boot_record;
pub mod fstab;
pub mod grub_defaults;
pub mod image;
pub mod kernel_options;
pub mod layout;
pub mod mount_unit;
pub mod name;
pub mod os_release;
pub mod package;
pub mod package_records;
pub mod percent;
pub mod persist;
pub mod pool;
pub mod removal;
pub mod rollback;
pub mod saved;
pub mod trial;
pub mod update;
pub mod volume;
