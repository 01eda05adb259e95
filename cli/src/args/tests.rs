use super::*;

fn run(words: &[&str]) -> Result<RunArgs, clap::Error> {
    let cli = Cli::try_parse_from(["isomem", "run"].iter().chain(words))?;
    match cli.command {
        Command::Run(options) => options.check().map(|()| options),
        _ => unreachable!("the words say run"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_checker_is_told_is_left_to_it() {
    let told = |words: &[&str]| {
        let cli = Cli::try_parse_from(["isomem", "check"].iter().chain(words)).expect("anything goes");
        match cli.command {
            Command::Check(options) => options.args,
            _ => unreachable!("the words say check"),
        }
    };
    assert!(told(&[]).is_empty());
    for words in [
        &["--help"][..],
        &["-h"],
        &["--json", "fault"],
        &["fault", "--iterations", "5"],
        &["--nonsense"],
        &["--version"],
    ] {
        assert_eq!(told(words), words, "{words:?}");
    }
}

#[test]
fn sizes_are_powers_of_1024() {
    let size = |text: &str| text.parse::<Size>().map(|size| size.0);
    assert_eq!(size("4096"), Ok(4096));
    assert_eq!(size("64M"), Ok(64 << 20));
    assert_eq!(size("64MiB"), Ok(64 << 20));
    assert_eq!(size("2gb"), Ok(2 << 30));
    for bad in [
        "",
        "M",
        "-1",
        "1.5M",
        "0",
        "0G",
        "12X",
        "99999999999999999999",
        "99999999999T",
        "64 M",
    ] {
        assert!(size(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn placements_are_read_and_written_alike() {
    for text in ["on-touch", "in-place", "after:3"] {
        assert_eq!(text.parse::<Policy>().expect("a policy").to_string(), text);
    }
    for bad in [
        "",
        "after",
        "after:",
        "after:0",
        "after:-1",
        "On-Touch",
        "after:99999999999",
    ] {
        assert!(bad.parse::<Policy>().is_err(), "{bad:?} was taken");
    }
}

#[test]
fn an_option_of_another_kernel_is_refused() {
    assert!(run(&["bfs", "f", "--root", "3"]).is_ok());
    assert!(run(&["sort", "f", "--output", "g", "--as", "lines"]).is_ok());
    for bad in [
        &["sort", "f", "--root", "3"][..],
        &["bfs", "f", "-o", "g"],
        &["sort", "f", "--words", "c"],
    ] {
        let error = run(bad).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn bad_usage_exits_with_2() {
    for bad in [
        &["juggle", "f"][..],
        &["sort"],
        &["sort", "f", "--workers", "0"],
        &["sort", "f", "--device-memory", "0"],
    ] {
        assert_eq!(run(bad).expect_err("refused").exit_code(), 2);
    }
}
