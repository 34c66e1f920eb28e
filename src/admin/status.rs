//! `status`: what is booted, what boots next, and how full the pool is.

mod metrics;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sys::utsname::uname;
use serde::Serialize;

use super::space::{Space, Spaces};
use super::text::{Paint, Tone};
use super::update::Waiting;
use super::view::{self, JSON_VERSION, LayerView, PoolView, View};
use super::{Context, as_json, check, need_root, packages, persist, say, text};
use crate::model::boot_record::BootRecord;
use crate::model::layout::{Group, Role};
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
    /// Whether what runs is a base itself.
    #[serde(skip)]
    is_base: bool,
    default: Option<&'a str>,
    once: Option<&'a str>,
    trial: Option<&'a OnTrial>,
    /// What the next start boots.
    next: Option<&'a str>,
    next_problem: Option<&'a str>,
    #[serde(skip)]
    is_choice_known: bool,
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

/// How `status` tells what it knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    Prometheus,
}

pub fn parse_format(text: &str) -> Result<Format> {
    Ok(match text {
        "text" => Format::Text,
        "json" => Format::Json,
        "prometheus" => Format::Prometheus,
        _ => bail!("expected text, json or prometheus"),
    })
}

/// Shows the state of the host on a few lines, or as `format` says.
pub fn show(context: &Context, format: Option<Format>) -> Result<()> {
    with_status(context, &|status| match format {
        Some(Format::Prometheus) => say(&metrics::render(status)),
        Some(Format::Json) => say(&as_json(status)?),
        Some(Format::Text) => say(&render(status, context.paint)),
        None => context.show(status, || render(status, context.paint)),
    })
}

/// What there is without a verb: the state of the host, and the commands that people need next.
pub fn overview(context: &Context) -> Result<()> {
    if context.json {
        return show(context, None);
    }
    if need_root().is_err() {
        let text = "What is booted, and what boots next, is for root to see, since lvm2 shows nothing to others.\n";
        return say(&with_next(text, &[AS_ROOT, HELP]));
    }
    if context.lvm.load()?.is_none() {
        let vg = context.lvm.vg();
        let text = format!("There is no volume group {vg} here, and so no layers.\n");
        return say(&with_next(&text, &[MAKE, TAKE_OVER, OTHER_GROUP, HELP]));
    }
    with_status(context, &|status| {
        let text = render(status, context.paint);
        say(&with_next(&text, &next_commands(status)))
    })
}

fn with_status(context: &Context, show: &dyn Fn(&Status) -> Result<()>) -> Result<()> {
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
        is_base: booted
            .and_then(|name| group.volume(name))
            .is_some_and(|volume| volume.role == Role::Base),
        default: view.default.as_deref(),
        once: view.once.as_deref(),
        trial: view.trial.as_ref(),
        next: view.next.as_deref(),
        next_problem: view.next_problem.as_deref(),
        is_choice_known: view.is_choice_known,
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
    show(&status)
}

/// A command for people, after the name of this program if it does not begin with another, and what it is for.
type Next = (&'static str, &'static str);

const AS_ROOT: Next = ("sudo imgbased-helper", "the state of this host");
const MAKE: Next = (
    "imgbased-helper layout init --device DEVICE",
    "make a volume group for layers on an empty disk",
);
const TAKE_OVER: Next = (
    "imgbased-helper layout init --from /",
    "make a base and a layer of the system that runs on a thin volume",
);
const OTHER_GROUP: Next = ("imgbased-helper --vg NAME", "the state of another group");
const CHECK: Next = ("imgbased-helper check", "what is wrong, and what to do");
const RESTART: Next = ("systemctl reboot", "start what waits for it");
const CANCEL: Next = (
    "imgbased-helper rollback",
    "have the default boot, and not what is on trial",
);
const LAYOUT: Next = (
    "imgbased-helper layout",
    "the bases and layers, and what each is",
);
const UPDATE: Next = (
    "imgbased-helper update IMAGE",
    "a newer image, with what was changed here; --check tells before",
);
const BACK: Next = (
    "imgbased-helper rollback",
    "boot the layer again that came up before this one",
);
const HELP: Next = ("imgbased-helper --help", "all commands");

/// What people need next on a host in this state, the most urgent first.
fn next_commands(status: &Status) -> Vec<Next> {
    let is_wrong = !status.problems.is_empty() || status.next_problem.is_some();
    // What runs already needs no restart to be tried.
    let waits = status
        .trial
        .is_some_and(|trial| Some(trial.name.as_str()) != status.booted || trial.kernel.is_some());
    let marks = [
        (is_wrong, CHECK),
        (
            waits || status.update.is_some() || status.once.is_some(),
            RESTART,
        ),
        (status.trial.is_some(), CANCEL),
        (true, LAYOUT),
        (status.trial.is_none(), UPDATE),
        (status.trial.is_none() && status.layers > 1, BACK),
        (!is_wrong, CHECK),
        (true, HELP),
    ];
    let needed = marks.into_iter().filter(|(is_needed, _)| *is_needed);
    needed.map(|(_, next)| next).collect()
}

/// A text, and below it commands for people.
fn with_next(text: &str, next: &[Next]) -> String {
    let row = |(command, what): &Next| (format!("  {command}"), (*what).to_owned());
    let rows: Vec<(String, String)> = next.iter().map(row).collect();
    format!("{text}\nCommands to go on with:\n{}", text::columns(&rows))
}

fn update(view: &View) -> Option<Update> {
    let trial = view.trial.as_ref().map(|trial| trial.name.as_str());
    let chosen = [trial, view.default.as_deref()];
    let waits = |of: &Waiting| waits(&of.layer, view.booted.as_deref(), chosen);
    let waiting = Waiting::read().filter(waits)?;
    let edited = Waiting::edited().unwrap_or(0);
    Some(Update {
        layer: waiting.layer,
        base: waiting.base,
        edited,
        missing_packages: waiting.missing_packages,
    })
}

/// Whether the layer of an update is to boot, on trial or not, and does not run yet.
fn waits(layer: &str, booted: Option<&str>, chosen: [Option<&str>; 2]) -> bool {
    chosen.contains(&Some(layer)) && booted != Some(layer)
}

/// What is not known is not told.
fn missing(group: &Group) -> Option<Missing> {
    let look = || -> Result<Option<Missing>> {
        let report = persist::report(group)?.filter(|report| !report.missing_packages.is_empty());
        let Some(report) = report else {
            return Ok(None);
        };
        // Of rpm it is not known without its program, so there all are told until the next update.
        let here = packages::of_dpkg(&Dir::root(Path::new("/"))?)?;
        let here = packages::versions(here.unwrap_or_default());
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

fn render(status: &Status, paint: Paint) -> String {
    let mut booted = match (status.booted, status.base) {
        (Some(layer), Some(base)) => format!("{layer}, a layer of {base}"),
        (Some(base), None) if status.is_base => {
            format!("{base}, a base: changes are kept in memory only")
        }
        (Some(layer), None) => format!("{layer}, a layer whose base is gone"),
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
            match status.next_problem {
                Some(problem) => paint.tone(Tone::Bad, problem),
                None => status.next.unwrap_or("unknown").to_owned(),
            },
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
            format!("{}: {}", layer.name, layer.marks(paint)),
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
        let bar = pool.data_percent.map(|used| paint.bar(used) + " ");
        rows.push((
            "Pool".to_owned(),
            format!(
                "{}{}: {}, {}",
                bar.unwrap_or_default(),
                pool.name,
                text::size(pool.size),
                pool.fullness(" full")
            ),
        ));
    }
    for (path, used) in [("/", status.root_percent), ("/boot", status.boot_percent)] {
        if let Some(used) = used {
            let row = format!("{} {used} full", paint.bar(used));
            rows.push((path.to_owned(), row));
        }
    }
    for problem in &status.problems {
        let problem = paint.tone(Tone::Bad, problem);
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
    use crate::model::boot_record::Phase;

    /// Much is to be told of this host.
    pub fn status_of(pool: &PoolView) -> Status<'_> {
        Status {
            version: JSON_VERSION,
            vg: "HostVG",
            booted: Some("Base-0.1"),
            base: Some("Base-0"),
            is_base: false,
            default: None,
            once: Some("Base-0.2"),
            trial: None,
            next: Some("imgbased-Base-0.2, once"),
            next_problem: None,
            is_choice_known: true,
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
            pool: Some(pool),
            root_percent: Some(Percent::new(97)),
            boot_percent: Some(Percent::new(20)),
            problems: vec!["root filesystem: is 97.0 % full".to_owned()],
            boot: None,
        }
    }

    fn inactive_pool() -> PoolView {
        PoolView {
            name: "ImagePool".to_owned(),
            size: 1 << 30,
            active: false,
            zeroes: true,
            data_percent: None,
            metadata_percent: None,
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_state_of_the_host() {
        let (pool, paint) = (inactive_pool(), Paint::default());
        let mut status = status_of(&pool);
        let expected = "\
Booted      Base-0.1, a layer of Base-0
Default     none, but Base-0.2 at the next start
Next start  imgbased-Base-0.2, once
Kernel      6.12
Group       HostVG: bases 1, layers 2
Update      Base-1.1, of Base-1, waits for a restart; paths edited in /etc since, which come along: 2; packages that do not come along: htop
Packages    of Base-\\033 not here: vim, x\\ny
Held        Base-1: a rollback has left it, and `update` takes it again only with --retry
Pool        ImagePool: 1.00 GiB, not active, so it does not tell how full it is
/           [=================== ] 97.0 % full
/boot       [====                ] 20.0 % full
Problem     root filesystem: is 97.0 % full; see `imgbased-helper check`
";
        assert_eq!(render(&status, paint), expected);
        // Where nothing is mounted, nothing is told.
        (status.root_percent, status.boot_percent) = (None, None);
        status.problems.clear();
        status.held.clear();
        let text = render(&status, paint);
        for row in ["/boot", "Problem", "Held"] {
            assert!(!text.contains(row), "{text}");
        }
    }

    #[test]
    fn colours_add_nothing_and_take_nothing_away() {
        let pool = PoolView {
            active: true,
            data_percent: "81.00".parse().ok(),
            metadata_percent: "1.00".parse().ok(),
            ..inactive_pool()
        };
        let status = Status {
            next_problem: Some("nothing boots"),
            ..status_of(&pool)
        };
        let mut coloured = render(&status, Paint::new(text::When::Always));
        assert!(
            coloured.contains("\x1b[31mnothing boots\x1b[0m"),
            "{coloured}"
        );
        for code in ["1", "31", "32", "33", "0"] {
            coloured = coloured.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(coloured, render(&status, Paint::default()));
    }

    #[test]
    fn the_commands_that_are_needed_next_depend_on_the_state() {
        let pool = inactive_pool();
        let trial = OnTrial {
            name: "Base-1.1".to_owned(),
            kernel: None,
            tries: 3,
            tried: 0,
        };
        let quiet = || Status {
            once: None,
            update: None,
            problems: Vec::new(),
            ..status_of(&pool)
        };
        for (status, wanted) in [
            (quiet(), &[LAYOUT, UPDATE, BACK, CHECK, HELP][..]),
            (
                Status {
                    update: status_of(&pool).update,
                    ..quiet()
                },
                &[RESTART, LAYOUT, UPDATE, BACK, CHECK, HELP],
            ),
            (
                Status {
                    layers: 1,
                    ..quiet()
                },
                &[LAYOUT, UPDATE, CHECK, HELP],
            ),
            (
                Status {
                    trial: Some(&trial),
                    ..quiet()
                },
                &[RESTART, CANCEL, LAYOUT, CHECK, HELP],
            ),
            (
                Status {
                    trial: Some(&trial),
                    booted: Some("Base-1.1"),
                    ..quiet()
                },
                &[CANCEL, LAYOUT, CHECK, HELP],
            ),
            (
                Status {
                    next_problem: Some("nothing boots"),
                    ..status_of(&pool)
                },
                &[CHECK, RESTART, LAYOUT, UPDATE, BACK, HELP],
            ),
        ] {
            assert_eq!(next_commands(&status), wanted);
        }
        assert_eq!(
            with_next("Text\n", &[AS_ROOT, HELP]),
            "Text\n\nCommands to go on with:\n  sudo imgbased-helper    the state of this host\n  \
             imgbased-helper --help  all commands\n"
        );
    }

    #[test]
    fn an_update_waits_until_its_layer_runs_or_something_else_is_chosen() {
        let (old, new) = (Some("Base-0.1"), Some("Base-1.1"));
        for (booted, trial, default, wanted) in [
            (old, new, old, true),
            // It is not tried.
            (old, None, new, true),
            (new, new, old, false),
            (new, None, new, false),
            (old, None, old, false),
            (old, old, old, false),
        ] {
            let found = waits("Base-1.1", booted, [trial, default]);
            assert_eq!(found, wanted, "{booted:?} {trial:?} {default:?}");
        }
    }

    #[test]
    fn what_runs_is_a_layer_or_a_base() {
        let pool = inactive_pool();
        for (base, is_base, wanted) in [
            (Some("Base-0"), false, "Base-0.1, a layer of Base-0\n"),
            (None, false, "Base-0.1, a layer whose base is gone\n"),
            (
                None,
                true,
                "Base-0.1, a base: changes are kept in memory only\n",
            ),
        ] {
            let status = Status {
                base,
                is_base,
                ..status_of(&pool)
            };
            let text = render(&status, Paint::default());
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn the_document_is_as_its_schema_says() {
        let pool = inactive_pool();
        let trial = OnTrial {
            name: "Base-0.1".to_owned(),
            kernel: Some("6.13".to_owned()),
            tries: 3,
            tried: 1,
        };
        let boot = BootRecord {
            version: 1,
            vg: "HostVG".to_owned(),
            vgid: None,
            layer: "Base-0.1".to_owned(),
            role: "layer".to_owned(),
            device: "/dev/mapper/HostVG-Base--0.1".to_owned(),
            instead_of: Some("Base-0.2".to_owned()),
            milliseconds: 800,
            own_microseconds: 900,
            phases: vec![Phase {
                name: "wait".to_owned(),
                milliseconds: 300,
            }],
        };
        let layer = view::tests::layer();
        for status in [
            status_of(&pool),
            Status {
                booted: None,
                base: None,
                update: None,
                missing_packages: None,
                pool: None,
                root_percent: None,
                boot_percent: None,
                next_problem: Some("nothing boots"),
                trial: Some(&trial),
                failed: vec![&layer],
                boot: Some(boot),
                ..status_of(&pool)
            },
        ] {
            crate::schemas::assert_holds("status", &status);
        }
    }
}
