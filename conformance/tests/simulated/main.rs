//! The cases in the simulated kernel, before every checker (DRV-2, WLD-3): LIFE-6, MIG-2, MIG-4, MIG-5, MIG-10, MIG-11 and INV-5 there.

mod host;
mod machine;

use std::sync::mpsc;
use std::time::Duration;

use isomem_conformance::{Case, Failure, Outcome, all};
use machine::Simulated;

/// A case that takes longer hangs.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Cases that ask for what the simulated kernel does not model, and what that is. `docs/linux-parity.md` has the list.
const NOT_MODELLED: [(&str, &str); 2] = [
    ("the_command_may_lie_anywhere", "bytes beyond the first 32 of a page"),
    ("anon_write_child_shared", "anonymous memory that a child shares"),
];

fn run(case: &'static Case<Simulated>) -> Outcome {
    if let Some((_, what)) = NOT_MODELLED.iter().find(|(name, _)| *name == case.name) {
        return Err(Failure::Skipped(format!("not modelled: {what}")));
    }
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        let machine = Simulated::new();
        let outcome = case.run(&machine);
        // Nobody listens any more where it took too long.
        let _ = done.send(outcome.and(machine.shut_down()));
    });
    outcome
        .recv_timeout(TIME_LIMIT)
        .unwrap_or_else(|error| Err(Failure::Wrong(format!("it ended without an outcome: {error}"))))
}

#[test]
fn drv_2_every_case_holds_in_the_simulated_kernel() {
    let cases: &'static [Case<Simulated>] = all().leak();
    let (mut failed, mut skipped) = (Vec::new(), 0);
    for case in cases {
        match run(case) {
            Ok(()) => println!("pass  {}", case.name),
            Err(Failure::Skipped(why)) => {
                skipped += 1;
                println!("skip  {}: {why}", case.name);
            }
            Err(Failure::Wrong(what)) => {
                println!("FAIL  {}: {what}", case.name);
                failed.push(case.name);
            }
        }
    }
    println!("\n{} cases, {} fail, {skipped} skipped", cases.len(), failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(
        skipped <= 14,
        "{skipped} cases are skipped, more than docs/linux-parity.md lists"
    );
}
