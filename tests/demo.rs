//! The main job, once and visibly: `ci/demo` runs it.

#[allow(dead_code, unused_imports, reason = "the tests use the other half")]
mod vm;

use std::env;

use anyhow::{Result, bail};

use vm::{Echo, Host, say};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        ["--interactive"] => hand_over(),
        _ => bail!("usage: ci/demo [--interactive]"),
    }
}

/// Boots the layer that is not the default and shows its status from inside.
fn show() -> Result<()> {
    let disk = Host::prepared()?.disk("demo")?;
    let mut vm = disk.boot("shown", Echo::Live)?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    let status = vm.ok("imgbased-helper status")?;
    vm.power_off()?;
    say(&format!(
        "what `imgbased-helper status` said in the layer picked in the menu:\n{status}"
    ));
    Ok(())
}

/// Leaves the person in the menu, in which the countdown has been stopped by an arrow key.
fn hand_over() -> Result<()> {
    let disk = Host::prepared()?.disk("demo")?;
    say("GRUB's menu follows; log in as root, without a password");
    say("leave with `poweroff`, or at any time with Ctrl-A X");
    let mut vm = disk.boot("interactive", Echo::Live)?;
    vm.menu()?.highlight("Base-0.2")?;
    vm.hand_over()
}
