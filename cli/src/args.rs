//! What the command line may say.

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use isomem::Placement;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

const EXAMPLES: &str = "\
Examples:
  isomem run wordcount README.md                     count words and the most frequent ones
  isomem run sort numbers.txt --output sorted.txt    sort on the device
  isomem run bfs soc-Epinions1.txt --root 0          breadth-first search over SNAP's edge list
  isomem run wordcount big.txt --device-memory 16M   a device with less memory than the data
  isomem doctor                                      what this machine gives, and what is lacking
  isomem bench                                       measure, each row against its own baseline
  isomem check fault                                 check a part of the protocol under thousands of schedules
  isomem dmirror -- ./hmm-tests                      a program that wants the kernel's HMM test devices

Exit status: 0 success, 1 a run or a check failed, 2 bad usage.";

/// One address space for the CPU and a device: run ordinary data on a device that shares this process's memory.
#[derive(Debug, Parser)]
#[command(name = "isomem", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a kernel on a software device over a file's data, and compare with the CPU's own result
    Run(RunArgs),
    /// Say what this kernel and these privileges give, what each lack costs, and how to fix it
    Doctor(DoctorArgs),
    /// Measure; each row carries its baseline from the same run
    Bench(BenchArgs),
    /// Check the protocol: designs that failed and the one that ships, under many schedules of their threads
    #[command(disable_help_flag = true, override_usage = "isomem check [OPTIONS] [SCENARIO]...")]
    Check(CheckArgs),
    /// Run a program with the kernel's HMM test devices, /dev/hmm_dmirror0 to 3, which need no kernel module here
    Dmirror(DmirrorArgs),
}

const DMIRROR_HELP: &str = "\
The program is an ordinary, dynamically linked one and need not know of isomem: what it opens as /dev/hmm_dmirror0 and 1 are devices with
private memory, 2 and 3 with coherent memory, and its ioctls on them are answered in its own process.

Examples:
  isomem dmirror -- ./hmm-tests
  isomem dmirror -- ./hmm-tests -r hmm.hmm_device_private.migrate
  isomem dmirror -- gdb --args ./hmm-tests
  ISOMEM_EXACTNESS=exact isomem dmirror -- ./hmm-tests     devices are told of every system call, not of the C library's functions only

ISOMEM_PRELOAD names the shared object libisomem_preload.so, where it is not beside this program or in a lib folder next to it.
Exit status: the program's own; 126 it cannot be run, 127 there is no such program, 1 isomem's part is missing, 2 bad usage.";

#[derive(Debug, Args)]
#[command(after_help = DMIRROR_HELP)]
pub(crate) struct DmirrorArgs {
    /// The program, and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    pub(crate) program: Vec<std::ffi::OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Count words as `wc -w` does, and find the ten most frequent
    Wordcount,
    /// Sort numbers, one per line, or else lines in byte order as `LC_ALL=C sort` does
    Sort,
    /// Breadth-first search over an edge list: `u v` per line, `#` begins a comment (SNAP's format)
    Bfs,
}

/// Which bytes make a word; the two that GNU wc takes from the locale, and POSIX's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WordRule {
    /// `c` or `utf8`, as LC_ALL, LC_CTYPE or LANG say: what plain `wc -w` does
    Auto,
    /// As `LC_ALL=C wc -w`: a word holds a printable ASCII character (GNU coreutils before 9.5)
    C,
    /// As `wc -w` in a UTF-8 locale, for valid text without Unicode's own spaces
    Utf8,
    /// Any run of bytes without white space is a word (`wc -w` of GNU coreutils from 9.5 on)
    Posix,
}

/// What a file to sort holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortAs {
    /// Integers if every line is one, else decimals if every line is one, else lines
    Auto,
    /// 64-bit integers; anything else is an error
    Integers,
    /// 64-bit floating point; anything else is an error. Infinities and NaN are refused
    Floats,
    /// Lines, in byte order
    Lines,
}

const RUN_HELP: &str = "\
Examples:
  isomem run wordcount README.md
  isomem run wordcount big.txt --device-memory 16M --workers 4
  isomem run sort numbers.txt --output sorted.txt
  isomem run bfs web-Google.txt --root 0 --placement after:2 --json";

#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// What to run
    #[arg(value_enum)]
    pub(crate) kernel: Kernel,
    /// The file to run it on
    pub(crate) file: PathBuf,
    /// Print one JSON object with `kernel`, `file`, `result` and `stats`
    #[arg(long)]
    pub(crate) json: bool,
    /// The device's memory, as 64M or 1G [default: enough for the data]; less than the data means eviction
    #[arg(long, value_name = "SIZE")]
    pub(crate) device_memory: Option<Size>,
    /// Worker threads of the device [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: Option<u16>,
    /// Where the device works on a page that it misses: on-touch moves it to the device at once, in-place never,
    /// after:N at the Nth miss
    #[arg(long, value_name = "POLICY", default_value = "on-touch")]
    pub(crate) placement: Policy,
    /// bfs: the vertex to start from [default: the first edge's first vertex]
    #[arg(long, value_name = "VERTEX")]
    pub(crate) root: Option<u64>,
    /// bfs: follow each edge both ways
    #[arg(long)]
    pub(crate) undirected: bool,
    /// sort: write the sorted data here
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// sort: what the file holds [default: auto]
    #[arg(long = "as", value_name = "KIND", value_enum)]
    pub(crate) sort_as: Option<SortAs>,
    /// wordcount: what a word is [default: auto]
    #[arg(long, value_name = "RULE", value_enum)]
    pub(crate) words: Option<WordRule>,
    /// No progress bar and no notes
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl RunArgs {
    /// Refuses options that the kernel has no use for, so that none is silently ignored.
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let given = [
            (self.root.is_some(), Kernel::Bfs, "--root"),
            (self.undirected, Kernel::Bfs, "--undirected"),
            (self.output.is_some(), Kernel::Sort, "--output"),
            (self.sort_as.is_some(), Kernel::Sort, "--as"),
            (self.words.is_some(), Kernel::Wordcount, "--words"),
        ];
        for (present, kernel, option) in given {
            if present && kernel != self.kernel {
                let text = format!("{option} is an option of `run {}`\n", kernel.name());
                return Err(Cli::command().error(ErrorKind::ArgumentConflict, text));
            }
        }
        Ok(())
    }

    /// Workers asked for, or one per processor.
    pub(crate) fn workers(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get().min(64));
        self.workers.map_or_else(processors, usize::from)
    }
}

impl Kernel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wordcount => "wordcount",
            Self::Sort => "sort",
            Self::Bfs => "bfs",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Print a JSON array of rows
    #[arg(long)]
    pub(crate) json: bool,
    /// Only name the rows
    #[arg(long)]
    pub(crate) list: bool,
    /// Rows to measure; `drivers` names those of all drivers [default: all]
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

const CHECK_HELP: &str = "\
Examples:
  isomem check                            every scenario with every design, in a few minutes
  isomem check --list                     what there is, and what is expected of it
  isomem check fault                      one scenario; failing designs are shown as timelines
  isomem check --design shipped --long    a million schedules of each design that ships
  isomem check --json                     an array of rows for programs
  isomem check --help                     all options

The checker is built from isomem's source, by cargo, which takes a few minutes the first time.

Exit status: 0 every verdict is the expected one, 1 one is not or the checker cannot be built, 2 bad usage.";

#[derive(Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct CheckArgs {
    /// Scenarios and options of the checker; `isomem check --help` tells them all
    #[arg(value_name = "SCENARIO|OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

/// A number of bytes above zero, with an optional suffix K, M, G or T (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err("write a number of bytes, or one with K, M, G or T behind it, as in 64M".into()),
        };
        let number: usize = number
            .parse()
            .map_err(|_| "write a whole number, as in 64M".to_owned())?;
        match number.checked_mul(1 << shift) {
            None => Err("more than an address can count".into()),
            Some(0) => Err("a device without memory has nowhere to put a page; give it at least 2M".into()),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

/// `--placement` as written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy(pub(crate) Placement);

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("after:").map(str::parse::<u32>)) {
            ("on-touch", _) => Ok(Self(Placement::OnTouch)),
            ("in-place", _) => Ok(Self(Placement::InPlace)),
            (_, Some(Ok(misses))) if misses > 0 => Ok(Self(Placement::AfterAccesses(misses))),
            _ => Err("write on-touch, in-place, or after:N with N from 1 on".into()),
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Placement::InPlace => f.write_str("in-place"),
            Placement::AfterAccesses(misses) => write!(f, "after:{misses}"),
            _ => f.write_str("on-touch"),
        }
    }
}

#[cfg(test)]
mod tests;
