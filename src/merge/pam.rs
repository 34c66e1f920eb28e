//! Modules of PAM that a new layer lacks: nobody gets in by a service that requires one which is not there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::{Action, Content, ETC, Plan};
use crate::tree::{Dir, Kind, escaped};

/// Where the services are, below /etc; or what they are links to where authselect(8) makes them.
const SERVICES: [&str; 2] = ["pam.d", "authselect"];
/// A longer one is not read, in bytes.
const SERVICE_MOST: u64 = 64 << 10;
/// Where modules are looked for that are named without a directory, beside those of Debian.
const PLACES: [&str; 4] = [
    "usr/lib64/security",
    "usr/lib/security",
    "lib64/security",
    "lib/security",
];

/// The modules that services of the layer ask for, as far as the layer has them.
pub struct Modules(Vec<Module>);

/// A module that a service asks for.
pub struct Module {
    /// From /etc.
    pub service: PathBuf,
    name: OsString,
    /// Where the layer has it.
    at: PathBuf,
}

impl Modules {
    /// Those of the services that are as in the layer.
    pub fn of(plan: &Plan, layer: &Dir) -> Result<Self> {
        let is_of_layer = |action: &Action| matches!(action, Action::Put(put) if put.kind == Kind::File && put.content == Content::Layer);
        let mut modules = Vec::new();
        for item in &plan.items {
            let is_service = SERVICES.iter().any(|dir| item.path.starts_with(dir));
            if !is_service || !is_of_layer(&item.action) {
                continue;
            }
            let node = layer.resolve(&Path::new(ETC).join(&item.path))?;
            let Some(node) =
                node.filter(|node| node.stat.kind == Kind::File && node.stat.size <= SERVICE_MOST)
            else {
                continue;
            };
            let text = node
                .read(SERVICE_MOST)
                .context("cannot read a service of PAM")?;
            for name in named(&text) {
                if let Some(at) = find(layer, &name).context("cannot look for modules of PAM")? {
                    let service = item.path.clone();
                    modules.push(Module { service, name, at });
                }
            }
        }
        Ok(Self(modules))
    }

    /// Those that are not in this root, and do not come there.
    pub fn lost(&self, root: &Dir, comes: &dyn Fn(&Path) -> Result<bool>) -> Result<Vec<&Module>> {
        let mut lost = Vec::new();
        for module in &self.0 {
            let is_there = find(root, &module.name).context("cannot look for modules of PAM")?;
            if is_there.is_none() && !comes(&module.at)? {
                lost.push(module);
            }
        }
        Ok(lost)
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not in the new base", escaped(&self.name))
    }
}

/// The modules of a service (pam.conf(5)). A line that begins with a dash asks for none that is not there.
fn named(text: &[u8]) -> Vec<OsString> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.starts_with(b"#") && !line.starts_with(b"-"));
    let words = lines.flat_map(|line| line.split(u8::is_ascii_whitespace));
    let modules = words.filter(|word| word.ends_with(b".so") && !word.contains(&0));
    let mut names: Vec<OsString> = modules.map(|name| OsStr::from_bytes(name).into()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Where a root has a module, from it.
fn find(root: &Dir, name: &OsStr) -> io::Result<Option<PathBuf>> {
    let is_there = |path: &Path| -> io::Result<bool> {
        let node = root.resolve(path)?;
        Ok(node.is_some_and(|node| node.stat.kind == Kind::File))
    };
    if name.as_bytes().starts_with(b"/") {
        let path = Path::new(name);
        return Ok(is_there(path)?.then(|| path.to_owned()));
    }
    let mut places: Vec<PathBuf> = PLACES.iter().map(PathBuf::from).collect();
    // A directory for each kind of processor.
    let lib = Path::new("usr/lib");
    if let Some(dir) = root.resolve_dir(lib)? {
        let names = dir.names()?.into_iter();
        let of_kinds = names.filter(|name| name.to_string_lossy().contains("-linux-"));
        places.extend(of_kinds.map(|name| lib.join(name).join("security")));
    }
    for place in places {
        let path = place.join(name);
        if is_there(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_services_of_authselect_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for root in ["old", "layer", "new"] {
            let pam = dir.path().join(root).join("etc/pam.d");
            fs::create_dir_all(&pam).unwrap();
            symlink("/etc/authselect/system-auth", pam.join("system-auth")).unwrap();
            let service = "etc/authselect/system-auth";
            write(&format!("{root}/{service}"), "auth required pam_unix.so\n");
        }
        let service = "account [default=bad success=ok] pam_sss.so\n";
        write("layer/etc/authselect/system-auth", service);
        write("layer/usr/lib64/security/pam_sss.so", "");
        let roots = ["old", "layer", "new"].map(|name| Dir::root(&dir.path().join(name)).unwrap());
        let [old, layer, new] = roots.each_ref();
        let plan = Plan::of([old, layer, new], false).unwrap();
        let modules = Modules::of(&plan, layer).unwrap();
        let lost = modules.lost(new, &|_| Ok(false)).unwrap();
        let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
        assert_eq!(lost, ["pam_sss.so is not in the new base"]);
    }

    #[test]
    fn a_module_that_a_kept_service_asks_for_is_missed() {
        let debian = "usr/lib/x86_64-linux-gnu/security/pam_x.so";
        for (service, of_layer, of_new, comes, is_lost) in [
            ("auth required pam_x.so nullok\n", debian, "", false, true),
            (
                "auth required pam_x.so\n",
                "lib64/security/pam_x.so",
                "",
                false,
                true,
            ),
            (
                "auth [success=1 default=bad] /opt/x/pam_x.so\n",
                "opt/x/pam_x.so",
                "",
                false,
                true,
            ),
            (
                "auth required pam_x.so\n",
                debian,
                "usr/lib64/security/pam_x.so",
                false,
                false,
            ),
            ("auth required pam_x.so\n", debian, "", true, false),
            // It was not there before.
            (
                "auth required pam_x.so\n",
                "usr/lib/other",
                "",
                false,
                false,
            ),
            (
                "# auth required pam_x.so\n-auth optional pam_x.so\n",
                debian,
                "",
                false,
                false,
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let write = |path: &str, text: &str| {
                let path = dir.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            };
            write("old/etc/pam.d/sshd", "auth required pam_unix.so\n");
            write("new/etc/pam.d/sshd", "auth required pam_unix.so\n");
            write("layer/etc/pam.d/sshd", service);
            write(&format!("layer/{of_layer}"), "");
            if !of_new.is_empty() {
                write(&format!("new/{of_new}"), "");
            }
            let roots =
                ["old", "layer", "new"].map(|name| Dir::root(&dir.path().join(name)).unwrap());
            let [old, layer, new] = roots.each_ref();
            let plan = Plan::of([old, layer, new], false).unwrap();
            let modules = Modules::of(&plan, layer).unwrap();
            let lost = modules.lost(new, &|_| Ok(comes)).unwrap();
            let said: Vec<String> = lost.iter().map(ToString::to_string).collect();
            let name = service
                .split_ascii_whitespace()
                .find(|word| word.contains("pam_x"));
            let wanted = name.filter(|_| is_lost);
            let wanted = wanted.map(|name| format!("{name} is not in the new base"));
            assert_eq!(
                said,
                wanted.into_iter().collect::<Vec<_>>(),
                "{service} {of_layer}"
            );
        }
    }
}
