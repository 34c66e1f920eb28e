//! `image`: makes of a root tree what an image has to be, tells what an image lacks, and packs one.

mod check;
mod opened;
mod pack;
mod prepare;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use super::Context;
use super::cli::CHECK_STATUS;

#[derive(Subcommand)]
pub enum Verb {
    /// Make of a root tree what an image has to be
    ///
    /// What tells one host from another goes: machine id, host name, keys of sshd, leases, random seeds and the like;
    /// histories of shells go too, and logs are emptied. Kernel options and fstab lose what names disks of one host,
    /// and /boot gets a line. The record of packages moves from /var to /usr/lib/sysimage, with links to it. Nothing
    /// outside of DIR is touched. What is as it should be stays, so it may be run again, also after an error.
    Prepare(prepare::Prepare),
    /// Find what would keep a host that is made of an image from booting or from being updated
    ///
    /// Each finding says what is wrong, why, and what to do. The image is what `base add` takes; it is read only, and
    /// needs no volume group. One that is compressed, or an archive, is unpacked to /var/tmp meanwhile.
    #[command(after_help = CHECK_STATUS)]
    Check(check::Check),
    /// Pack a root tree so that hosts fetch only what they do not have of it
    ///
    /// OUT becomes a directory in the OCI image layout, with one layer in the format zstd:chunked, and with a
    /// SHA256SUMS to be signed. A web server shows it as it is: `base add` and `update` take its address. Needs
    /// skopeo 1.15 or newer, as Debian 13 has it.
    Pack(pack::Pack),
}

pub fn run(context: &Context, verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Prepare(prepare) => {
            prepare::run(context, prepare)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Check(check) => check::run(context, check),
        Verb::Pack(pack) => {
            pack::run(context, pack)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
