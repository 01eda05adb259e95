use super::*;

fn everything() -> Facts {
    Facts {
        kernel: "6.18.0".into(),
        access: Access::All,
        move_: true,
        write_protect: true,
        poison: true,
        event_remove: true,
        event_unmap: true,
        event_remap: true,
        event_fork: true,
        pagemap_scan: true,
        procmap_query: true,
        huge_pages: "madvise".into(),
        level: Exact::Cooperative,
        no_exact: None,
    }
}

fn lacks(facts: &Facts) -> Vec<&'static str> {
    checks(facts)
        .into_iter()
        .filter(|check| check.state == State::Lack)
        .map(|check| check.name)
        .collect()
}

#[test]
fn where_everything_is_there_nothing_is_lacking() {
    assert!(lacks(&everything()).is_empty());
    let text = tell(&diagnose(&everything(), None));
    assert!(text.contains("isomem can run here") && !text.contains("LACK"), "{text}");
}

#[test]
fn each_lack_says_what_it_costs_and_how_to_fix_it() {
    let nothing = Facts {
        huge_pages: "never".into(),
        no_exact: Some("no".into()),
        ..Facts::default()
    };
    let all = checks(&nothing);
    assert_eq!(lacks(&nothing).len(), all.len());
    assert!(all.iter().all(|check| !check.costs.is_empty() && !check.fix.is_empty()));
}

#[test]
fn an_unprivileged_process_is_told_of_its_system_calls_and_forks() {
    let facts = Facts {
        access: Access::UserMode,
        event_fork: false,
        ..everything()
    };
    assert_eq!(lacks(&facts), ["faults in system calls", "event: fork"]);
    assert!(exactness(&facts).not_noticed.contains(&"fork"));
}

#[test]
fn why_it_cannot_run_is_told() {
    let text = tell(&diagnose(&Facts::default(), Some("permission denied".into())));
    assert!(text.contains("cannot run here: permission denied") && text.contains("vm.unprivileged_userfaultfd=1"));
}

#[test]
fn the_chosen_word_is_the_one_in_brackets() {
    assert_eq!(facts::chosen("always [madvise] never"), "madvise");
    assert_eq!(facts::chosen("unknown"), "never");
}

#[test]
fn wld_2_the_level_is_told_with_what_it_does_not_see() {
    let at = |level| exactness(&Facts { level, ..everything() });
    let cooperative = at(Exact::Cooperative);
    assert_eq!(cooperative.level, "cooperative");
    assert!(cooperative.not_noticed.contains(&"mprotect"));
    let exact = at(Exact::Exact(isomem::Windows::EVERYWHERE));
    assert!(exact.noticed_late.is_empty() && exact.not_noticed[0].contains("io_uring"));
}
