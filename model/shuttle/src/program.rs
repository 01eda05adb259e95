//! What the program does with its command line.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use isomem_sim::checker::Verdict;
use isomem_sim::journal::Record;

use crate::args::Args;
use crate::batch::{self, Checked, Pair};
use crate::explore::{Budget, Choices, replay};
use crate::report::{self, Row};
use crate::saved::Saved;
use crate::scenario::{Design, Scenario};
use crate::timeline::{self, Page, Timeline};

/// Schedules of a design that must hold, by default.
const HOLDS: usize = 20_000;
/// Schedules of a design that must fail, by default: at most, for the first failure ends it.
const FAILS: usize = 100_000;
/// Schedules of each design with `--long`.
const LONG: usize = 1_000_000;
/// No design takes longer by default, so that the whole ends in time on a slow machine, too.
const PATIENCE: Duration = Duration::from_secs(45);
/// Lines are wrapped to this where there is no terminal.
const WIDTH: usize = 100;

/// Why the program could not do what it was told.
#[derive(Debug)]
pub enum Problem {
    /// The command line makes no sense.
    Usage(String),
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// The result cannot be written.
    Output(io::Error),
}

impl Problem {
    /// The exit status that tells of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::File(..) | Self::Output(_) => 1,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "cannot write the result: {error}"),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Does what `args` say with the scenarios `all`, prints the result to `out`, and gives the exit status.
///
/// # Errors
/// [`Problem`].
pub fn run(all: &[&'static Scenario], args: &Args, out: &mut dyn Write) -> Result<u8, Problem> {
    if let Some(file) = &args.replay {
        return again(all, args, file, out);
    }
    let pairs = choose(all, args)?;
    if args.list {
        out.write_all(report::list(&pairs).as_bytes())?;
        return Ok(0);
    }
    let begun = Instant::now();
    let checked = explore_all(&pairs, args);
    let seconds = begun.elapsed().as_secs_f64();
    let folder = write_all(&checked, args)?;
    if args.verbose || !args.scenarios.is_empty() || args.design.is_some() {
        tell_all(&checked, args, out)?;
    }
    let rows: Vec<Row> = checked.into_iter().map(|checked| checked.row).collect();
    print_rows(&rows, args, seconds, out)?;
    if let Some(folder) = folder {
        eprintln!(
            "Pictures of the designs that fail: {}",
            folder.join("index.html").display()
        );
    }
    Ok(u8::from(rows.iter().any(|row| !row.is_fine())))
}

fn print_rows(rows: &[Row], args: &Args, seconds: f64, out: &mut dyn Write) -> io::Result<()> {
    let text = if args.json {
        report::json(rows)
    } else if args.verbose {
        format!(
            "{}\n{}",
            report::bounds(rows),
            report::table(rows, args.seed.0, seconds)
        )
    } else {
        report::table(rows, args.seed.0, seconds)
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The designs that were asked for.
fn choose(all: &[&'static Scenario], args: &Args) -> Result<Vec<Pair>, Problem> {
    let mut names = all.iter().map(|scenario| scenario.name);
    if let Some(unknown) = args
        .scenarios
        .iter()
        .find(|name| !names.clone().any(|known| known == name.as_str()))
    {
        return Err(unknown_name("scenario", unknown, &mut names));
    }
    let wanted =
        |scenario: &&&Scenario| args.scenarios.is_empty() || args.scenarios.iter().any(|name| name == scenario.name);
    let pairs = all.iter().filter(wanted);
    let pairs: Vec<Pair> = pairs
        .flat_map(|scenario| scenario.designs.iter().map(move |design| (*scenario, design)))
        .collect();
    let Some(name) = &args.design else { return Ok(pairs) };
    let chosen: Vec<Pair> = pairs
        .iter()
        .filter(|pair| pair.1.name == name.as_str())
        .copied()
        .collect();
    if chosen.is_empty() {
        return Err(unknown_name("design", name, &mut pairs.iter().map(|pair| pair.1.name)));
    }
    Ok(chosen)
}

fn unknown_name(what: &str, name: &str, known: &mut dyn Iterator<Item = &'static str>) -> Problem {
    let mut known: Vec<_> = known.collect();
    known.sort_unstable();
    known.dedup();
    Problem::Usage(format!("there is no {what} {name:?}; there are: {}", known.join(", ")))
}

fn explore_all(pairs: &[Pair], args: &Args) -> Vec<Checked> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.map_or(processors, usize::from);
    let bar = progress(pairs.len());
    let checked = batch::check(
        pairs,
        jobs,
        |design| budget(design, args),
        |checked| {
            bar.set_message(format!("{} / {}", checked.row.scenario, checked.row.design));
            bar.inc(1);
        },
    );
    bar.finish_and_clear();
    checked
}

fn budget(design: &Design, args: &Args) -> Budget {
    let asked = args
        .iterations
        .map(|count| usize::try_from(count).unwrap_or(usize::MAX));
    let asked = asked.or(args.long.then_some(LONG));
    let default = if design.expected == Verdict::Holds {
        HOLDS
    } else {
        FAILS
    };
    Budget {
        iterations: asked.unwrap_or(default),
        seed: args.seed.0,
        time: asked.is_none().then_some(PATIENCE),
    }
}

/// For people who wait: nothing where no terminal is.
fn progress(count: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(count as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Writes pages and schedules of what failed. Gives the folder if there is something in it.
fn write_all(checked: &[Checked], args: &Args) -> Result<Option<PathBuf>, Problem> {
    let failed: Vec<(&Checked, &Record)> = checked
        .iter()
        .filter_map(|one| Some((one, one.record.as_ref()?)))
        .collect();
    if failed.is_empty() {
        return Ok(None);
    }
    if let Some(folder) = &args.save {
        for (one, _) in &failed {
            save(one, args, folder).map_err(|error| Problem::File(folder.clone(), error))?;
        }
    }
    let folder = args.pictures.clone().unwrap_or_else(default_folder);
    match write_pages(&failed, args, &folder) {
        Ok(()) => Ok(Some(folder)),
        Err(error) if args.pictures.is_some() => Err(Problem::File(folder, error)),
        Err(error) => {
            eprintln!("isomem check: no pictures in {}: {error}", folder.display());
            Ok(None)
        }
    }
}

/// Beside what cargo builds if that is here.
fn default_folder() -> PathBuf {
    let target = Path::new("target");
    let parent = if target.is_dir() {
        target.to_owned()
    } else {
        std::env::temp_dir()
    };
    parent.join("isomem-check")
}

fn save(one: &Checked, args: &Args, folder: &Path) -> io::Result<PathBuf> {
    let choices = one.row.schedule.as_ref();
    let saved = Saved {
        scenario: one.row.scenario.to_owned(),
        design: one.row.design.to_owned(),
        verdict: one.row.verdict.to_string(),
        seed: args.seed.0,
        schedule: choices.map_or_else(String::new, Choices::to_string),
    };
    saved.write(folder)
}

fn write_pages(failed: &[(&Checked, &Record)], args: &Args, folder: &Path) -> io::Result<()> {
    let mut links = Vec::new();
    for (one, record) in failed {
        let schedule = save(one, args, folder)?;
        let (scenario, design) = one.pair;
        let timeline = Timeline::of(record);
        let page = Page {
            scenario: scenario.name,
            about: scenario.about,
            source: scenario.source,
            design: design.name,
            works: design.about,
            command: &format!("isomem check --replay {}", schedule.display()),
            timeline: &timeline,
        };
        let file = format!("{}.html", Saved::stem(scenario.name, design.name));
        std::fs::write(folder.join(&file), page.html())?;
        links.push((file, scenario.name, design.name, one.row.verdict.words()));
    }
    std::fs::write(folder.join("index.html"), timeline::index(&links))
}

fn tell_all(checked: &[Checked], args: &Args, out: &mut dyn Write) -> io::Result<()> {
    let failed = checked.iter().filter_map(|one| Some((one.pair, one.record.as_ref()?)));
    for (pair, record) in failed.filter(|_| !args.json) {
        tell(pair, record, out)?;
    }
    Ok(())
}

/// The picture for a terminal, with a heading.
fn tell((scenario, design): Pair, record: &Record, out: &mut dyn Write) -> io::Result<()> {
    let width = width();
    writeln!(out, "{} / {}", scenario.name, design.name)?;
    writeln!(out, "{}", timeline::paragraph(scenario.about, width))?;
    let works = format!("The design: {}", design.about);
    writeln!(out, "{}", timeline::paragraph(&works, width))?;
    writeln!(out, "\n{}", timeline::text(&Timeline::of(record), width))
}

fn width() -> usize {
    let there = io::stdout().is_terminal();
    let size = terminal_size::terminal_size().filter(|_| there);
    size.map_or(WIDTH, |(width, _)| usize::from(width.0))
}

/// Tells a saved schedule again.
fn again(all: &[&'static Scenario], args: &Args, file: &Path, out: &mut dyn Write) -> Result<u8, Problem> {
    let begun = Instant::now();
    let unreadable = |error| Problem::File(file.to_owned(), error);
    let saved = Saved::read(file).map_err(unreadable)?;
    let only = Args {
        scenarios: vec![saved.scenario.clone()],
        design: Some(saved.design.clone()),
        ..args.clone()
    };
    let pair = choose(all, &only)?[0];
    let choices: Choices = saved
        .schedule
        .parse()
        .map_err(|error| unreadable(io::Error::other(error)))?;
    let replayed = replay(pair.1, &choices);
    let row = Row {
        seconds: begun.elapsed().as_secs_f64(),
        sentence: replayed.record.finding.as_ref().map(|finding| finding.sentence.clone()),
        trouble: replayed
            .strayed
            .then(|| String::from("the story no longer takes this schedule; something like it was told")),
        ..Row::new(pair, 1, replayed.verdict())
    };
    let fine = row.verdict == row.expected;
    if args.json {
        out.write_all(report::json(&[row]).as_bytes())?;
    } else {
        tell(pair, &replayed.record, out)?;
        out.write_all(report::replayed(&row).as_bytes())?;
    }
    out.flush()?;
    Ok(u8::from(!fine))
}
