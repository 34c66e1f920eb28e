//! `status`: what is booted, what boots next, and how full the pool is.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::utsname::uname;
use serde::Serialize;

use super::space::{Space, Spaces};
use super::update::Waiting;
use super::view::{self, JSON_VERSION, LayerView, PoolView, View};
use super::{Context, check, packages, persist, text};
use crate::model::boot_record::BootRecord;
use crate::model::layout::Group;
use crate::model::percent::Percent;
use crate::model::pool::Mismatch;
use crate::model::trial::OnTrial;
use crate::tree::{Dir, escaped};

#[derive(Serialize)]
struct Status<'a> {
    version: u32,
    vg: &'a str,
    booted: Option<&'a str>,
    base: Option<&'a str>,
    default: Option<&'a str>,
    once: Option<&'a str>,
    trial: Option<&'a OnTrial>,
    /// What the next start boots.
    next: Option<&'a str>,
    next_problem: Option<&'a str>,
    /// An update that waits for a restart.
    update: Option<Update>,
    /// Packages of the layer before that the update which made what runs has not taken along, and that are not here.
    missing_packages: Option<Missing>,
    /// The layers whose last trial failed, or that of a kernel in them.
    failed: Vec<&'a LayerView>,
    /// The bases that a rollback has left.
    held: Vec<&'a str>,
    kernel: String,
    layers: usize,
    bases: usize,
    pool: Option<&'a PoolView>,
    /// How full the root filesystem of the layer that runs is, and the boot partition.
    root_percent: Option<Percent>,
    boot_percent: Option<Percent>,
    /// What is wrong with the volumes or with the room, as `check` tells with what to do.
    problems: Vec<String>,
    /// How it was booted; nothing if an initramfs without the helper did it.
    boot: Option<BootRecord>,
}

#[derive(Serialize)]
struct Update {
    layer: String,
    base: String,
    /// How many paths in /etc were edited since. They come along at shutdown.
    edited: usize,
    /// The packages that do not come along.
    missing_packages: Vec<String>,
}

impl Update {
    fn words(&self) -> String {
        let mut words = format!("{}, of {}, waits for a restart", self.layer, self.base);
        if self.edited > 0 {
            words += &format!(
                "; paths edited in /etc since, which come along: {}",
                self.edited
            );
        }
        if !self.missing_packages.is_empty() {
            let missing = names(&self.missing_packages);
            words += &format!("; packages that do not come along: {missing}");
        }
        words
    }
}

#[derive(Serialize)]
struct Missing {
    layer: String,
    packages: Vec<String>,
}

/// Shows the state of the host on a few lines.
pub fn show(context: &Context) -> Result<()> {
    let (view, group) = view::load_with_group(context)?;
    let spaces = Spaces::read(context, &group)?;
    let mismatch = mismatch(context, &group)?;
    let used = |space: Option<&Space>| space.map(|space| space.used);
    let kernel = uname().context("cannot ask for the kernel's version")?;
    let booted = view.booted.as_deref();
    let status = Status {
        version: JSON_VERSION,
        vg: &view.vg,
        booted,
        base: base_of(&view, booted),
        default: view.default.as_deref(),
        once: view.once.as_deref(),
        trial: view.trial.as_ref(),
        next: view.next.as_deref(),
        next_problem: view.next_problem.as_deref(),
        update: update(&view),
        missing_packages: missing(&group),
        failed: view
            .layers()
            .filter(|layer| layer.failure.is_some() || !layer.failed_kernels.is_empty())
            .collect(),
        held: view.held().collect(),
        kernel: kernel.release().to_string_lossy().into_owned(),
        layers: view.layers().count(),
        bases: view.bases.len(),
        pool: view.pool.as_ref(),
        root_percent: used(spaces.root.as_ref()),
        boot_percent: used(spaces.boot.as_ref()),
        problems: check::find_at_once(&group, mismatch.as_ref(), &spaces),
        boot: view::boot_record(),
    };
    context.show(&status, || render(&status))
}

fn update(view: &View) -> Option<Update> {
    let trial = view.trial.as_ref()?;
    let waiting = Waiting::read().filter(|waiting| waiting.layer == trial.name)?;
    let edited = Waiting::edited().unwrap_or(0);
    Some(Update {
        layer: waiting.layer,
        base: waiting.base,
        edited,
        missing_packages: waiting.missing_packages,
    })
}

/// What is not known is not told.
fn missing(group: &Group) -> Option<Missing> {
    let look = || -> Result<Option<Missing>> {
        let report = persist::report(group)?.filter(|report| !report.missing_packages.is_empty());
        let Some(report) = report else {
            return Ok(None);
        };
        let here = packages::of(&Dir::root(Path::new("/"))?)?;
        let mut packages = report.missing_packages;
        packages.retain(|name| !here.contains_key(name));
        Ok(Some(Missing {
            layer: report.layer,
            packages,
        }))
    };
    let missing = look().inspect_err(|error| log::debug!("packages are not told: {error:#}"));
    let missing = missing.ok().flatten();
    missing.filter(|missing| !missing.packages.is_empty())
}

/// Whether the pool is another one than LVM takes it for. What is active works, and is not looked at: that takes
/// another report of lvm2, and `check` does.
fn mismatch(context: &Context, group: &Group) -> Result<Option<Mismatch>> {
    if group.pool().is_none_or(|pool| pool.active) {
        return Ok(None);
    }
    context.pool_mismatch(&context.load()?)
}

fn base_of<'a>(view: &'a View, booted: Option<&str>) -> Option<&'a str> {
    let layer = view
        .layers()
        .find(|layer| Some(layer.name.as_str()) == booted)?;
    Some(&layer.base)
}

fn render(status: &Status) -> String {
    let mut booted = match (status.booted, status.base) {
        (Some(layer), Some(base)) => format!("{layer}, a layer of {base}"),
        (Some(base), None) => format!("{base}, a base: changes are kept in memory only"),
        (None, _) => "no layer".to_owned(),
    };
    let boot = status.boot.as_ref();
    if let Some(first) = boot.and_then(|boot| boot.instead_of.as_ref()) {
        booted += &format!(", as the fallback of {first}, which failed");
    }
    let mut default = status.default.unwrap_or("none").to_owned();
    if let Some(trial) = status.trial {
        default += &format!(", unless {} comes up: {trial}", trial.subject());
    }
    if let Some(once) = status.once {
        default += &format!(", but {once} at the next start");
    }
    let mut rows = vec![
        ("Booted".to_owned(), booted),
        ("Default".to_owned(), default),
        (
            "Next start".to_owned(),
            status
                .next_problem
                .or(status.next)
                .unwrap_or("unknown")
                .to_owned(),
        ),
        ("Kernel".to_owned(), status.kernel.clone()),
        (
            "Group".to_owned(),
            format!(
                "{}: bases {}, layers {}",
                status.vg, status.bases, status.layers
            ),
        ),
    ];
    if let Some(update) = &status.update {
        rows.push(("Update".to_owned(), update.words()));
    }
    if let Some(Missing { layer, packages }) = &status.missing_packages {
        let row = format!("of {} not here: {}", escaped(layer), names(packages));
        rows.push(("Packages".to_owned(), row));
    }
    for layer in &status.failed {
        rows.push((
            "Failed".to_owned(),
            format!("{}: {}", layer.name, layer.marks()),
        ));
    }
    if !status.held.is_empty() {
        let held = status.held.join(" ");
        let row = format!(
            "{held}: a rollback has left it, and `update` takes it again only with --retry"
        );
        rows.push(("Held".to_owned(), row));
    }
    if let Some(boot) = boot {
        rows.push(("Mounted".to_owned(), format!("in {}", boot.times())));
    }
    if let Some(pool) = status.pool {
        rows.push((
            "Pool".to_owned(),
            format!(
                "{}: {}, {}",
                pool.name,
                text::size(pool.size),
                pool.fullness(" full")
            ),
        ));
    }
    let spaces = [("root", status.root_percent), ("boot", status.boot_percent)];
    let spaces = spaces
        .into_iter()
        .filter_map(|(name, used)| Some((name, used?)));
    let spaces: Vec<String> = spaces
        .map(|(name, used)| format!("{name} {used} full"))
        .collect();
    if !spaces.is_empty() {
        rows.push(("Filesystems".to_owned(), spaces.join(", ")));
    }
    for problem in &status.problems {
        rows.push((
            "Problem".to_owned(),
            format!("{problem}; see `imgbased-helper check`"),
        ));
    }
    text::columns(&rows)
}

fn names(packages: &[String]) -> String {
    escaped(packages.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_the_state_of_the_host() {
        let pool = PoolView {
            name: "ImagePool".to_owned(),
            size: 1 << 30,
            active: false,
            zeroes: true,
            data_percent: None,
            metadata_percent: None,
        };
        let mut status = Status {
            version: JSON_VERSION,
            vg: "HostVG",
            booted: Some("Base-0.1"),
            base: Some("Base-0"),
            default: None,
            once: Some("Base-0.2"),
            trial: None,
            next: Some("imgbased-Base-0.2, once"),
            next_problem: None,
            update: Some(Update {
                layer: "Base-1.1".to_owned(),
                base: "Base-1".to_owned(),
                edited: 2,
                missing_packages: vec!["htop".to_owned()],
            }),
            missing_packages: Some(Missing {
                layer: "Base-\u{1b}".to_owned(),
                packages: vec!["vim".to_owned(), "x\ny".to_owned()],
            }),
            failed: Vec::new(),
            held: vec!["Base-1"],
            kernel: "6.12".to_owned(),
            layers: 2,
            bases: 1,
            pool: Some(&pool),
            root_percent: Some(Percent::new(97)),
            boot_percent: Some(Percent::new(20)),
            problems: vec!["root filesystem: is 97.0 % full".to_owned()],
            boot: None,
        };
        let expected = "\
Booted       Base-0.1, a layer of Base-0
Default      none, but Base-0.2 at the next start
Next start   imgbased-Base-0.2, once
Kernel       6.12
Group        HostVG: bases 1, layers 2
Update       Base-1.1, of Base-1, waits for a restart; paths edited in /etc since, which come along: 2; packages that do not come along: htop
Packages     of Base-\\033 not here: vim, x\\ny
Held         Base-1: a rollback has left it, and `update` takes it again only with --retry
Pool         ImagePool: 1.00 GiB, not active, so it does not tell how full it is
Filesystems  root 97.0 % full, boot 20.0 % full
Problem      root filesystem: is 97.0 % full; see `imgbased-helper check`
";
        assert_eq!(render(&status), expected);
        // Where nothing is mounted, nothing is told.
        (status.root_percent, status.boot_percent) = (None, None);
        status.problems.clear();
        status.held.clear();
        let text = render(&status);
        for row in ["Filesystems", "Problem", "Held"] {
            assert!(!text.contains(row), "{text}");
        }
    }
}
