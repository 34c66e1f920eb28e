//! Asks a program of a root, which runs shut in.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Result;

use super::filesystem::mount_point;
use crate::sys::sandbox::Sandbox;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, READ_MAX};

/// Where that is mounted which it can write to.
const SCRATCH: &str = "asked";
/// How long it may think, in seconds. A record of packages is read in less on a slow disk, and others wait for the lock.
const LIMIT: u32 = 120;

/// What a line of shell in the root that is mounted at `root` says to `question`: it reads that from `/run/question`, and
/// writes the answer to `/run/answer`. The inner error is its own.
pub fn ask(
    tx: &mut Transaction,
    root: &Path,
    line: &str,
    question: &[u8],
) -> Result<Result<Vec<u8>>> {
    let scratch = mount_point(SCRATCH);
    let run = scratch.join("run");
    let sandbox = Sandbox::open(tx, root, &scratch)?.within(LIMIT);
    let mut put = Ok(());
    tx.work(&"the question is put where it is read", |_| {
        put = put_question(&run, question);
        Ok(())
    })?;
    let said = match put {
        Ok(()) => sandbox.attempt(tx, &["/bin/sh", "-c", line])?,
        Err(error) => Err(error),
    };
    let answer = said.and_then(|()| {
        let answer = Dir::root(&run)?.node("answer".as_ref())?;
        Ok(answer.read(READ_MAX)?)
    });
    sandbox.close(tx)?;
    Ok(answer)
}

fn put_question(run: &Path, question: &[u8]) -> Result<()> {
    DirBuilder::new().mode(0o755).create(run)?;
    let mut file = Dir::root(run)?.create("question".as_ref())?;
    Ok(file.write_all(question)?)
}
