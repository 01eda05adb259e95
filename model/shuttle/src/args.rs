//! What the command line may say.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;

const EXAMPLES: &str = "\
Examples:
  isomem check                                   every scenario with every design, in a few minutes
  isomem check --list                            what there is, and what is expected of it
  isomem check SCENARIO                          one scenario; failing designs are shown as timelines
  isomem check SCENARIO --design shipped         only the design that ships
  isomem check --design shipped --iterations 1000000 --seed random
  isomem check --replay FILE                     tell one saved schedule again
  isomem check --json                            an array of rows for programs

The same as `cargo run --release -p isomem-check -- ...` in isomem's source.

Exit status: 0 every verdict is the expected one, 1 one is not, 2 bad usage.";

/// Check isomem's protocol: stories of failures that were argued about, each told with the designs that failed and with the one that ships,
/// under many schedules.
#[derive(Debug, Clone, Parser)]
#[command(name = "isomem check", bin_name = "isomem check", version, after_help = EXAMPLES)]
pub struct Args {
    /// Scenarios to check [default: all]
    #[arg(value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Only designs of this name; the one that ships is called `shipped`
    #[arg(long, value_name = "NAME")]
    pub design: Option<String>,
    /// Schedules for each design, at most [default: 20000 for one that ships, 100000 for one that fails, which ends with its first failure]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
    /// A million schedules for each design
    #[arg(long, conflicts_with = "iterations")]
    pub long: bool,
    /// The same seed means the same schedules; `random` takes another each time
    #[arg(long, value_name = "N|random", default_value = "1")]
    pub seed: Seed,
    /// Designs to explore at a time [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Tell the schedule that is saved in this file, and nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenarios", "design", "iterations", "long", "list", "save", "pictures"])]
    pub replay: Option<PathBuf>,
    /// Print an array of rows with `scenario`, `design`, `schedules`, `verdict` and `expected`
    #[arg(long)]
    pub json: bool,
    /// Only say what there is
    #[arg(long)]
    pub list: bool,
    /// Show the schedule of each failing design, as naming a scenario or a design does, and how schedules were chosen
    #[arg(long, short)]
    pub verbose: bool,
    /// Where to put a page with a picture, and the schedule, of each design that fails [default: target/isomem-check]
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    /// Save the schedules of designs that fail here too, as regression tests
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
}

/// `--seed` as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "random" {
            return Ok(Self(random()));
        }
        let seed = text.parse().map_err(|_| "write a whole number, or random".to_owned())?;
        Ok(Self(seed))
    }
}

/// A number that is another one each time: std's maps are seeded by the system.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 32
}
