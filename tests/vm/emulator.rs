//! What goes wrong in a machine because of the emulator, and not of what is tested.

use anyhow::Result;

use super::store::say;

/// How an error begins that is the emulator's fault.
const FAULT: &str = "the emulator lost an interrupt: ";

/// What a kernel says when a processor has not got an interrupt of its timer, after which much in it
/// stands still. It happens under QEMU's own emulation, once in some hundreds of starts.
const LOST_INTERRUPT: &str = "kthread timer wakeup didn't happen";

/// What a kernel says first, and when it starts the initramfs. One that stands still before that, and
/// does not say why, has run nothing that is tested here.
pub const KERNEL_STARTS: &str = "Linux version ";
const INIT_STARTS: &str = "Run /init as init process";
pub const PANIC: &str = "Kernel panic - not syncing";

/// How the error begins of a machine that said `text` and then stood still.
pub fn fault(text: &str) -> &'static str {
    let kernel = text.rsplit_once(KERNEL_STARTS).map(|(_, said)| said);
    let is_stuck = kernel.is_some_and(|said| !said.contains(INIT_STARTS) && !said.contains(PANIC));
    if is_stuck || text.contains(LOST_INTERRUPT) {
        FAULT
    } else {
        ""
    }
}

/// Does what `name` stands for, once more if the emulator was at fault.
pub fn forgiven<T>(name: &str, run: impl Fn() -> Result<T>) -> Result<T> {
    let result = run();
    match &result {
        Err(error) if format!("{error:#}").contains(FAULT) => {
            say(&format!("{name}: once more, {error:#}"));
            run()
        }
        _ => result,
    }
}
