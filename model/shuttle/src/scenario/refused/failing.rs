//! Three ways to go on when a subscriber refused, as they were tried in 2019. The list is the same for all.

use std::sync::Arc;

use isomem_sim::journal::Name;
use isomem_sim::sync::{Condvar, Mutex, thread};

use super::{Answer, Driver, Pass, Passes};

type Drivers = Vec<(Name, Arc<dyn Driver>)>;

/// The list of subscribers. Who walks it sees it as it is when the walk begins; who unlinks an entry waits until every walk is over that
/// may have seen it (in the kernel: SRCU).
struct List {
    state: Mutex<State>,
    idle: Condvar,
}

struct State {
    drivers: Drivers,
    sections: usize,
}

impl List {
    fn new(drivers: [(Name, Arc<dyn Driver>); 3]) -> Self {
        let state = State {
            drivers: drivers.into(),
            sections: 0,
        };
        Self {
            state: Mutex::new("subscriber list", state),
            idle: Condvar::new("no walk of the list"),
        }
    }

    /// The list as it is now.
    fn now(&self) -> Drivers {
        self.state.lock().drivers.clone()
    }

    /// Runs `walks`; nothing that is unlinked meanwhile goes away before they are over.
    fn section<R>(&self, walks: impl FnOnce() -> R) -> R {
        self.state.lock().sections += 1;
        let answer = walks();
        self.state.lock().sections -= 1;
        self.idle.notify_all();
        answer
    }

    fn link(&self, name: Name, driver: Arc<dyn Driver>) {
        self.state.lock().drivers.push((name, driver));
    }

    fn unlink(&self, name: Name) {
        let mut state = self.state.lock();
        let place = state.drivers.iter().position(|(of, _)| *of == name);
        let (_, driver) = state.drivers.remove(place.expect("it was linked"));
        while state.sections > 0 {
            state = self.idle.wait(state);
        }
        drop(state);
        driver.release();
    }
}

/// What the three share: the list, and a pass whose end goes to those that were in the list at its start.
trait OnRefusal: Sized + Send + Sync + 'static {
    fn new(list: List) -> Self;

    fn list(&self) -> &List;

    /// `accepted` subscribers of those that were `told` have accepted, the next one refused.
    fn undo(&self, pass: Pass, told: &Drivers, accepted: usize);
}

impl<D: OnRefusal> Passes for D {
    fn new(drivers: [(Name, Arc<dyn Driver>); 3]) -> Self {
        OnRefusal::new(List::new(drivers))
    }

    fn run(&self, pass: Pass, change: &dyn Fn()) {
        self.list().section(|| {
            let told = self.list().now();
            let refused = told
                .iter()
                .position(|(_, driver)| driver.start(pass) == Answer::Refused);
            if let Some(accepted) = refused {
                return self.undo(pass, &told, accepted);
            }
            change();
            thread::yield_now();
            told.iter().for_each(|(_, driver)| driver.end(pass));
        });
    }

    fn unsubscribe(&self, name: Name) {
        self.list().unlink(name);
    }

    fn subscribe(&self, name: Name, driver: Arc<dyn Driver>) {
        self.list().link(name, driver);
    }
}

/// No start, no end: the caller of a pass that failed does not call its end. Nobody remembers those who had accepted.
pub(super) struct NoEnds(List);

impl OnRefusal for NoEnds {
    fn new(list: List) -> Self {
        Self(list)
    }

    fn list(&self) -> &List {
        &self.0
    }

    fn undo(&self, _: Pass, _: &Drivers, _: usize) {}
}

/// The end undoes the start, so it is sent whatever became of the start, and to everybody. Who refused is told the end of what it refused.
pub(super) struct EndsForAll(List);

impl OnRefusal for EndsForAll {
    fn new(list: List) -> Self {
        Self(list)
    }

    fn list(&self) -> &List {
        &self.0
    }

    fn undo(&self, pass: Pass, told: &Drivers, _: usize) {
        told.iter().for_each(|(_, driver)| driver.end(pass));
    }
}

/// Ends as many as accepted. The list is not locked between the two walks, so the first `accepted` entries of the second need not be those of the
/// first.
pub(super) struct UndoByCount(List);

impl OnRefusal for UndoByCount {
    fn new(list: List) -> Self {
        Self(list)
    }

    fn list(&self) -> &List {
        &self.0
    }

    fn undo(&self, pass: Pass, _: &Drivers, accepted: usize) {
        let again = self.list().now();
        again.iter().take(accepted).for_each(|(_, driver)| driver.end(pass));
    }
}
