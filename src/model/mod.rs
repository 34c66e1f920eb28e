//! What a host has and what it should have. No input or output happens here.

pub mod boot_record;
pub mod cmdline;
pub mod fstab;
pub mod layout;
pub mod name;
pub mod percent;
