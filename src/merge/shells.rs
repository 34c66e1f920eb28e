//! Shells that a new layer lacks: nobody logs in where the one of passwd(5) is not there.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::apply::users_of;
use super::outside::Zones;
use super::plan::{ETC, Plan};
use super::users::{FILES, Name, PASSWD, Table, id_of, shown};
use super::{LAYER, NEW};
use crate::tree::{Dir, Kind, escaped};

/// What is meant where none is named (passwd(5)).
const USUAL: &[u8] = b"/bin/sh";
const SHELL: usize = 6;
const ROOT: &[u8] = b"root";

/// The users of a merge whose shell is not the one that the new base has for them.
pub struct Shells(Vec<Shell>);

struct Shell {
    user: Name,
    path: Vec<u8>,
    /// Of one with all rights: what root has in the new base.
    of_root: Option<Vec<u8>>,
}

/// A user whose shell is not there.
pub struct Lost<'a> {
    shell: &'a Shell,
    /// What the user gets in its place.
    instead: Option<&'a [u8]>,
}

impl Shells {
    /// Those that are there in the layer, by the plan for the roots, which are as they were. What is on a volume is
    /// there for each layer.
    pub fn of(plan: &Plan, roots: [&Dir; 3], zones: &Zones) -> Result<Self> {
        let base = users_of(roots[NEW])?;
        let passwd = |content: &'_ Option<Vec<u8>>| content.clone().unwrap_or_default();
        let (merged, base) = (passwd(&plan.users.files.0[PASSWD]), passwd(&base.0[PASSWD]));
        let [merged, base] = [&merged, &base].map(|content| Table::parse(PASSWD, content));
        let mut shells = Vec::new();
        for name in merged.names() {
            let Some(user) = merged.get(&name) else {
                continue;
            };
            let theirs = base.get(&name);
            let path = &user[SHELL];
            if theirs.is_some_and(|theirs| theirs[SHELL] == *path)
                || zones.is_on_volume(as_path(path))
                || !is_there(roots[LAYER], path).context("cannot look for the shells of users")?
            {
                continue;
            }
            let of_root = theirs.or(base.get(ROOT)).map(|root| root[SHELL].clone());
            shells.push(Shell {
                user: name,
                path: path.clone(),
                of_root: of_root.filter(|_| id_of(user) == 0),
            });
        }
        Ok(Self(shells))
    }

    /// Those whose shell is not in this root, and does not come there.
    pub fn lost(&self, root: &Dir, comes: &dyn Fn(&Path) -> Result<bool>) -> Result<Vec<Lost<'_>>> {
        let is_in_root = |path: &[u8]| is_there(root, path).context("cannot look for a shell");
        let mut lost = Vec::new();
        for shell in &self.0 {
            if is_in_root(&shell.path)? || comes(as_path(&shell.path))? {
                continue;
            }
            let mut instead = None;
            for path in shell.of_root.iter().flat_map(|path| [path, USUAL]) {
                if instead.is_none() && is_in_root(path)? {
                    instead = Some(path);
                }
            }
            lost.push(Lost { shell, instead });
        }
        Ok(lost)
    }
}

impl fmt::Display for Lost<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &[u8]| escaped(as_path(path));
        let (user, lost) = (shown(&self.shell.user), path(&self.shell.path));
        write!(f, "shell of {user}, {lost}, is not in the new base")?;
        match self.instead {
            Some(instead) => write!(f, ", so it is {} now", path(instead)),
            None => Ok(()),
        }
    }
}

/// Has those with all rights log in to this root by a shell that is there.
pub fn replace_shells(root: &Dir, lost: &[Lost]) -> Result<()> {
    let instead = |name: &Name| {
        let mut lost = lost.iter().filter(|lost| lost.shell.user == *name);
        lost.find_map(|lost| lost.instead)
    };
    let content = users_of(root)?.0[PASSWD].clone().unwrap_or_default();
    let table = Table::parse(PASSWD, &content);
    let mut is_changed = false;
    let mut entries = Vec::new();
    for name in table.names() {
        let mut user = table.get(&name).cloned().unwrap_or_default();
        if let Some(path) = instead(&name) {
            user[SHELL] = path.to_vec();
            is_changed = true;
        }
        entries.push(user);
    }
    if is_changed {
        write_passwd(root, &table.with(entries)).context("cannot write /etc/passwd")?;
    }
    Ok(())
}

fn write_passwd(root: &Dir, content: &[u8]) -> io::Result<()> {
    let name = FILES[PASSWD].as_ref();
    let Some(etc) = root.descend(Path::new(ETC))? else {
        return Ok(());
    };
    let meta = etc.node(name)?.meta()?;
    etc.replace(name, &mut |temporary| {
        let mut file = etc.create(temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        etc.set_meta(temporary, &meta, None)
    })
}

/// Whether a program is in a root, or what leads to one.
fn is_there(root: &Dir, path: &[u8]) -> io::Result<bool> {
    let node = root.resolve(as_path(path))?;
    Ok(node.is_some_and(|node| node.stat.kind == Kind::File && node.stat.mode & 0o111 != 0))
}

fn as_path(shell: &[u8]) -> &Path {
    let shell = if shell.is_empty() { USUAL } else { shell };
    Path::new(OsStr::from_bytes(shell))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::merge::Rules;

    /// Roots with these lines of passwd and these programs.
    fn roots(dir: &Path, sides: [(&str, &[&str]); 3]) -> [Dir; 3] {
        let mut names = ["old", "layer", "new"].into_iter();
        sides.map(|(passwd, programs)| {
            let root = dir.join(names.next().unwrap());
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::create_dir_all(root.join("usr/bin")).unwrap();
            symlink("usr/bin", root.join("bin")).unwrap();
            fs::write(root.join("etc/passwd"), passwd).unwrap();
            for program in programs {
                let program = root.join(program);
                fs::create_dir_all(program.parent().unwrap()).unwrap();
                fs::write(&program, "").unwrap();
                fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
            }
            Dir::root(&root).unwrap()
        })
    }

    fn passwd(root: &str, anna: &str) -> String {
        format!(
            "root:x:0:0::/root:{root}\nanna:x:1000:1000::/:{anna}\ntoor:x:0:0::/root:\nold:x:5:5::/:/bin/gone\n"
        )
    }

    /// What is lost where root and anna have these shells in the layer, and what root has in the end.
    fn lost(shells: [&str; 2], comes: &[&str]) -> (Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        let base = passwd("/bin/bash", "/bin/bash");
        let there: &[&str] = &["usr/bin/bash", "usr/bin/sh"];
        let layer = [there, &["usr/bin/zsh", "usr/local/bin/fish", "vol/ksh"]].concat();
        let [old, layer, new] = roots(
            dir.path(),
            [
                (&base, there),
                (&passwd(shells[0], shells[1]), &layer),
                (&base, there),
            ],
        );
        let roots = [&old, &layer, &new];
        let plan = Plan::of(roots, false).unwrap();
        let volumes = [PathBuf::from("/vol")];
        let rules = Rules {
            volumes: &volumes,
            ..Rules::default()
        };
        let zones = Zones::of_roots(roots, &rules).unwrap();
        let found = Shells::of(&plan, roots, &zones).unwrap();
        crate::merge::apply(&plan, &layer, &new).unwrap();
        let comes = |path: &Path| Ok(comes.iter().any(|comes| path == Path::new(comes)));
        let lost = found.lost(&new, &comes).unwrap();
        replace_shells(&new, &lost).unwrap();
        let text = fs::read_to_string(dir.path().join("new/etc/passwd")).unwrap();
        let line = text.lines().next().unwrap();
        let shell = line.rsplit(':').next().unwrap().to_owned();
        (lost.iter().map(Lost::to_string).collect(), shell)
    }

    #[test]
    fn root_logs_in_by_a_shell_that_is_there() {
        let of =
            |user: &str, path: &str| format!("shell of {user}, {path}, is not in the new base");
        let (zsh, fish) = ("/usr/bin/zsh", "/usr/local/bin/fish");
        for (shells, comes, wanted, of_root) in [
            (["/bin/bash", "/bin/bash"], &[][..], vec![], "/bin/bash"),
            // Also one that the new base has, and that a link leads to.
            (["/bin/sh", "/usr/bin/sh"], &[], vec![], "/bin/sh"),
            (
                [zsh, "/bin/zsh"],
                &[],
                vec![
                    of("root", zsh) + ", so it is /bin/bash now",
                    of("anna", "/bin/zsh"),
                ],
                "/bin/bash",
            ),
            ([fish, zsh], &[fish], vec![of("anna", zsh)], fish),
            // What is on a volume is not looked for, and what is not there in the layer is no loss.
            (["/vol/ksh", "/bin/none"], &[], vec![], "/vol/ksh"),
        ] {
            let found = lost(shells, comes);
            assert_eq!(found, (wanted, of_root.to_owned()), "{shells:?}");
        }
    }

    #[test]
    fn others_with_all_rights_get_what_root_has() {
        let dir = tempfile::tempdir().unwrap();
        let base = "root:x:0:0::/root:/bin/gone\n";
        let layer = "root:x:0:0::/root:/bin/gone\ntoor:x:0:0::/root:/bin/zsh\n";
        let there: &[&str] = &["usr/bin/sh"];
        let [old, layer, new] = roots(
            dir.path(),
            [
                (base, there),
                (layer, &["usr/bin/sh", "usr/bin/zsh"]),
                (base, there),
            ],
        );
        let roots = [&old, &layer, &new];
        let plan = Plan::of(roots, false).unwrap();
        let zones = Zones::usual(roots, false).unwrap();
        let shells = Shells::of(&plan, roots, &zones).unwrap();
        let lost = shells.lost(&new, &|_| Ok(false)).unwrap();
        let said: Vec<String> = lost.iter().map(Lost::to_string).collect();
        assert_eq!(
            said,
            ["shell of toor, /bin/zsh, is not in the new base, so it is /bin/sh now"]
        );
    }
}
