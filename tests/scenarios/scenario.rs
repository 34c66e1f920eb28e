//! Running scenarios: which ones, two at a time, and what each of them took.

use std::env;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::seed;
use crate::vm::qemu::run_two_at_a_time;
use crate::vm::{clear_scratch, forgiven, say, tally};

/// So many run at a time, unless libtest's own variable says another number. More machines at once only slow each
/// other down on two processors.
const LANES: usize = 2;
const LANES_VARIABLE: &str = "RUST_TEST_THREADS";

/// No scenario in turns begins after this time, in seconds since 1970. Without the variable each of them has its turn.
const UNTIL_VARIABLE: &str = "IMGBASED_TURNS_UNTIL";

/// A story that has to come true in machines.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The module and the function.
    pub name: &'static str,
    pub run: fn() -> Result<()>,
    pub when: When,
}

/// Which runs have a scenario, but for those that name it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Each complete run: what no host can be without.
    Always,
    /// Each complete run that has the time. The order of these is another one each time, so that on a slow machine it is
    /// not always the same ones that have no turn.
    InTurns,
    /// No complete run: it takes too long.
    Long,
}

/// `scenarios![a, b; turns: c; long: d]`: the scenarios of a module.
macro_rules! scenarios {
    (
        $($always:ident),* $(,)?
        $(; turns: $($turns:ident),* $(,)?)?
        $(; long: $($long:ident),* $(,)?)?
    ) => {
        pub const SCENARIOS: &[$crate::scenario::Scenario] = &[
            $($crate::scenario::scenario!($always, Always),)*
            $($($crate::scenario::scenario!($turns, InTurns),)*)?
            $($($crate::scenario::scenario!($long, Long),)*)?
        ];
    };
}

macro_rules! scenario {
    ($name:ident, $when:ident) => {
        $crate::scenario::Scenario {
            name: concat!(module_path!(), "::", stringify!($name)),
            run: $name,
            when: $crate::scenario::When::$when,
        }
    };
}
pub(crate) use scenario;

impl Scenario {
    /// The name without that of the program.
    fn short_name(&self) -> &'static str {
        self.name
            .split_once("::")
            .map_or(self.name, |(_, name)| name)
    }
}

/// What the arguments select.
pub enum Selection {
    /// All that are not long.
    Complete,
    /// The long ones, or each nth of them.
    Long(Part),
    /// Those with one of these texts in their name, long or not.
    Named(Vec<String>),
}

/// One part of several, such as the second of four.
pub struct Part {
    at: usize,
    of: usize,
}

impl Part {
    const ALL: Self = Self { at: 1, of: 1 };

    fn parse(text: &str) -> Option<Self> {
        let (at, of) = text.split_once('/')?;
        let (at, of) = (at.parse().ok()?, of.parse().ok()?);
        (1..=of).contains(&at).then_some(Self { at, of })
    }
}

impl Selection {
    pub fn of_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let words: Vec<String> = arguments.collect();
        let part = match &words[..] {
            [] => return Ok(Self::Complete),
            [option] if option == "--long" => Some(Part::ALL),
            [option, part] if option == "--long" => Part::parse(part),
            [word, ..] if word.starts_with('-') => None,
            _ => return Ok(Self::Named(words)),
        };
        part.map(Self::Long)
            .context("usage: [--long [PART/PARTS] | NAME...]")
    }

    /// The scenarios of `all` that are selected.
    pub fn of(self, mut all: Vec<Scenario>) -> Vec<Scenario> {
        // In the order of the words.
        let place = |scenario: &Scenario| match &self {
            Self::Named(words) => words
                .iter()
                .position(|word| scenario.short_name().contains(word)),
            Self::Complete => match scenario.when {
                When::Always => Some(0),
                When::InTurns => Some(1),
                When::Long => None,
            },
            Self::Long(_) => (scenario.when == When::Long).then_some(0),
        };
        all.retain(|scenario| place(scenario).is_some());
        all.sort_by_key(place);
        if let Self::Complete = self {
            let turns = all.partition_point(|scenario| scenario.when == When::Always);
            seed::rng("turns").shuffle(&mut all[turns..]);
        }
        if let Self::Long(Part { at, of }) = self {
            all = all.into_iter().skip(at - 1).step_by(of).collect();
        }
        all
    }
}

/// What a scenario took.
struct Row {
    name: &'static str,
    time: Duration,
    boots: usize,
    restores: usize,
}

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// The time after which no scenario in turns begins.
fn turns_until() -> Option<SystemTime> {
    let seconds = env::var(UNTIL_VARIABLE).ok()?.parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Runs the scenarios and shows what each of them took. All that is wrong shows in one run.
pub fn run(scenarios: Vec<Scenario>) -> ExitCode {
    let started = Instant::now();
    run_two_at_a_time();
    let until = turns_until();
    let lanes = env::var(LANES_VARIABLE).ok();
    let lanes = lanes.and_then(|lanes| lanes.parse().ok()).unwrap_or(LANES);
    let arguments = Arguments {
        test_threads: Some(lanes),
        ..Arguments::default()
    };
    let trials = scenarios.into_iter().map(|scenario| {
        Trial::ignorable_test(scenario.short_name(), move || {
            let is_late = until.is_some_and(|until| SystemTime::now() > until);
            if is_late && scenario.when == When::InTurns {
                return Ok(Completion::ignored_with("no time"));
            }
            let done = measured(&scenario).map(|()| Completion::Completed);
            done.map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    show_table(started.elapsed(), lanes);
    if conclusion.num_ignored > 0 {
        say(&format!(
            "{} scenarios had no turn, as there was no time: `ci/test vm` runs all of them",
            conclusion.num_ignored
        ));
    }
    if let Err(error) = check(&conclusion) {
        say(&format!("error: {error:#}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn check(conclusion: &libtest_mimic::Conclusion) -> Result<()> {
    ensure!(
        conclusion.num_passed + conclusion.num_failed > 0,
        "no scenario has such a name"
    );
    ensure!(
        !conclusion.has_failed(),
        "{} scenarios failed",
        conclusion.num_failed
    );
    Ok(())
}

/// Runs a scenario, and measures it.
fn measured(scenario: &Scenario) -> Result<()> {
    let started = Instant::now();
    let name = scenario.short_name();
    let mut result = forgiven(name, scenario.run);
    if let Err(error) = &result {
        say(&format!("{name}: {error:#}"));
    }
    result = clear_scratch(result.is_err()).and(result);
    let (boots, restores) = tally::take();
    let row = Row {
        name,
        time: started.elapsed(),
        boots,
        restores,
    };
    say(&format!("{name}: {}", row.describe()));
    if let Ok(mut rows) = ROWS.lock() {
        rows.push(row);
    }
    result
}

impl Row {
    fn describe(&self) -> String {
        let seconds = self.time.as_secs();
        format!(
            "{seconds:>5} s {:>3} boots {:>4} restores",
            self.boots, self.restores
        )
    }
}

/// The longest first, and the sum.
fn show_table(time: Duration, lanes: usize) {
    let Ok(mut rows) = ROWS.lock() else { return };
    rows.sort_by_key(|row| std::cmp::Reverse(row.time));
    let sum = Row {
        name: "all",
        time: rows.iter().map(|row| row.time).sum(),
        boots: rows.iter().map(|row| row.boots).sum(),
        restores: rows.iter().map(|row| row.restores).sum(),
    };
    for row in rows.iter().chain([&sum]) {
        say(&format!("{}  {}", row.describe(), row.name));
    }
    say(&format!("{} s on {lanes} lanes", time.as_secs()));
}
