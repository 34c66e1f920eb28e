//! Read-only bases and writable layers for Linux hosts, on LVM thin volumes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod boot;
pub mod early;
pub mod image;
pub mod lvm;
pub mod model;
pub mod sys;
