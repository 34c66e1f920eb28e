//! Makes the disk image of the example: `ci/image` runs it.

#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use std::env;
use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [images] = &arguments[..] else {
        bail!("usage: ci/image DIR");
    };
    let images = Path::new(images);
    vm::example::make_disk(images, images)?;
    vm::clear_scratch(false)
}
