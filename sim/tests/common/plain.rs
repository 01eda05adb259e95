//! On plain threads: what happens is up to the machine. A telling that hangs is given up after [`PATIENCE`].

use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use isomem_sim::journal::Journal;

use super::{Judges, tell};

/// On a busy machine a telling takes a second or two.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(judges: Judges, tellings: Range<u64>, story: impl Fn(&Journal, u64) + Send + Sync + 'static) {
    let story = Arc::new(story);
    for number in tellings {
        let journal = Journal::new(judges(), false);
        let (done, over) = mpsc::channel();
        let (told, teller) = (journal.clone(), Arc::clone(&story));
        let thread = std::thread::spawn(move || {
            teller(&told, number);
            let _ = done.send(());
        });
        if over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let record = journal.finish();
            panic!("telling {number} does not end\n{}", tell(&record));
        }
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
        let record = journal.finish();
        assert!(record.finding.is_none(), "telling {number}\n{}", tell(&record));
    }
}
