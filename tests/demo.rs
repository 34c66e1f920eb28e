//! The main job, once and visibly: `ci/demo` runs it.

#[allow(dead_code, unused_imports, reason = "the tests use the other half")]
mod vm;

use std::env;
use std::io::{Write, stdout};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use vm::{Echo, Host, HostDisk, Loader, RootImage, Start, store};

/// The layer that is picked; the other one is the default.
const PICKED: &str = "Base-0.2";

fn main() -> Result<()> {
    vm::be_quiet();
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(),
        ["--interactive"] => hand_over(),
        _ => bail!("usage: ci/demo [--interactive]"),
    }
}

/// Boots the layer that is not the default and shows its status from inside.
fn show() -> Result<()> {
    let disk = installed_disk()?;
    tell("The machine is switched on. GRUB, on the disk's own boot sector, shows a menu:")?;
    let mut vm = disk.boot("shown")?;
    let mut menu = vm.menu()?;
    write_indented(&menu.screen())?;
    tell(&format!("{PICKED} is picked with the arrow keys:"))?;
    menu.highlight(PICKED)?;
    write_indented(&menu.screen())?;
    menu.choose(PICKED)?;
    doing("It boots, and root logs in", || vm.log_in())?;
    for command in ["imgbased-helper status", "imgbased-helper layout"] {
        tell(&format!("root@testhost:~# {command}"))?;
        write_indented(&vm.ok(command)?)?;
    }
    doing("The machine is switched off", || vm.power_off().map(drop))?;
    let log = store::log("demo-shown")?;
    tell(&format!(
        "What to try next:\n\
         \x20   ci/demo --interactive         the same menu, for you; then `imgbased-helper layer add`,\n\
         \x20                                 `boot try Base-0.3` and `reboot` in the machine\n\
         \x20   README.md, \"On a real host\"   how a host of your own is made\n\
         All that the machine has said is in {}.",
        log.display()
    ))
}

/// Leaves the person in the menu, in which the countdown has been stopped by an arrow key.
fn hand_over() -> Result<()> {
    let disk = installed_disk()?;
    tell(
        "GRUB's menu follows. The user is root, without a password. Leave with `poweroff`, or at any\n\
         time with Ctrl-A X.",
    )?;
    let start = Start {
        echo: Echo::Live,
        ..Start::default()
    };
    let mut vm = disk.start("interactive", Vec::new(), start)?;
    vm.menu()?.highlight(PICKED)?;
    vm.hand_over()
}

/// Makes what is not there from an earlier run.
fn installed_disk() -> Result<HostDisk> {
    doing(
        "The package is built, and with it an image of Debian 13",
        || RootImage::prepared().map(drop),
    )?;
    tell(
        "In a virtual machine these commands make a host of a blank disk, with a base and two layers:",
    )?;
    write_indented(&vm::readme::commands(Loader::README_OF_GRUB)?.join("\n"))?;
    doing("They run", || Host::prepared().map(drop))?;
    Host::prepared()?.disk("demo")
}

/// Tells what is done while it is done, and how long it took.
fn doing(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    write(&format!("\n{what} ... "))?;
    work()?;
    write(&format!("{} s\n", started.elapsed().as_secs()))
}

fn tell(text: &str) -> Result<()> {
    write(&format!("\n{text}\n"))
}

/// Shows what a machine shows, or is told.
fn write_indented(text: &str) -> Result<()> {
    let lines = text
        .lines()
        .map(|line| format!("    {}\n", line.trim_end()));
    write(&lines.collect::<String>())
}

fn write(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}
