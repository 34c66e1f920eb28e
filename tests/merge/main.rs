//! The merge on directories: what three roots become, case by case. Run as root, since owners and devices
//! are part of it; what the filesystem of the temporary directory lacks is said and left out.

mod adopted;
mod again;
mod cases;
mod hostile;
mod outside;
mod tree;
mod whole;
