//! Images in layers, as registries of containers have them.

pub mod layout;
