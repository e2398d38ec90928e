//! What the process has of the group: its partitions, the records of each that are held, and which of them may begin.
//!
//! One lock for all of it, held for moments and never while work begins or is broken off. Two sides meet here: the
//! thread that polls, which brings records and takes partitions away, and the tasks that work. Each time a partition
//! comes it has a new generation, and a task that ends counts only for the generation that its record came with: work
//! that ends after its partition has gone frees its memory and changes nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::offsets::Offsets;
use super::{Consumed, ConsumerError, Lease};
use crate::metrics::ConsumerMetrics;
use crate::record::{Origin, Record};

/// How many records of a partition may be open, from its first unfinished one on: all of them are done again after a
/// crash. One record that takes for ever then pauses its partition, instead of being left behind without bound.
const MOST_OPEN: usize = 10_000;
/// What is paused is resumed once no more is held than this share of the bounds, so that it is resumed for more than
/// one record: each pause throws away what librdkafka has fetched ahead.
const RESUME_AT: (usize, usize) = (3, 4);
/// How often a wait tells the age of the oldest record.
const TELL_AGE: Duration = Duration::from_millis(500);

/// A topic and one of its partitions.
pub(super) type Place = (Arc<str>, i32);

/// Begins the work on a record, without waiting for it.
pub(super) type Begin = Box<dyn Fn(Begun) + Send + Sync>;

/// A record whose work is to begin now.
pub(super) struct Begun {
    pub(super) consumed: Consumed,
    pub(super) ticket: Ticket,
    /// When this is cancelled, the work is broken off.
    pub(super) cut: CancellationToken,
}

/// How the work on a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Abandoned,
    Panicked,
    /// Broken off: its partition has gone, or the runtime ends.
    Cut,
}

/// A record under way. Dropping it is how its end is told, so that none can be forgotten.
pub(super) struct Ticket {
    assignment: Arc<Assignment>,
    place: Place,
    generation: u64,
    offset: i64,
    bytes: usize,
    key: Option<Bytes>,
    end: End,
}

impl Ticket {
    pub(super) fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let assignment = self.assignment.clone();
        assignment.ended(self);
    }
}

/// What is to be paused and resumed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) pause: Vec<Place>,
    pub(super) resume: Vec<Place>,
}

/// A partition, as the watcher of lags sees it.
pub(super) struct Watched {
    pub(super) place: Place,
    pub(super) generation: u64,
    /// Where the next work begins; unknown until the first record has come.
    pub(super) reached: Option<i64>,
}

/// How much may be held.
pub(super) struct Bounds {
    /// Nothing is polled while so many records, or so many bytes, are held.
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// When there has been no room for so long, partitions are paused, and it is polled again.
    pub(super) pause_after: Duration,
}

pub(super) struct Assignment {
    begin: Begin,
    bounds: Bounds,
    metrics: ConsumerMetrics,
    stop: CancellationToken,
    state: Mutex<State>,
    /// Told when a record has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    partitions: HashMap<Place, Partition>,
    generations: u64,
    /// Records and bytes held, also those of partitions that have gone, until their work has ended.
    records: usize,
    bytes: usize,
    /// Of those, records under way whose partition has gone: their work was broken off and has not let go yet.
    leaving: usize,
    /// Since when as much is held as may be.
    no_room_since: Option<Instant>,
    /// There was no room for long; stays until clearly less is held.
    full: bool,
    /// What is paused may have to change.
    reflow: bool,
    /// Nothing is begun any more, and no partition that comes is worked on.
    closed: bool,
    fault: Option<ConsumerError>,
}

struct Partition {
    generation: u64,
    offsets: Offsets,
    /// What was last handed on to be committed.
    stored: Option<i64>,
    under_way: usize,
    /// Keys with a record under way, and the records that wait for its end, in order.
    keys: HashMap<Bytes, VecDeque<Waiting>>,
    /// The record that is not due yet, and when it is. It is not counted as held, and while it waits the partition is
    /// paused: what comes all the same waits behind it.
    early: VecDeque<(Instant, Waiting)>,
    /// Cancelled when what is under way should come to an end; nothing is begun from then on.
    lease: CancellationToken,
    /// Cancelled when what is under way is broken off.
    cut: CancellationToken,
    /// Whether librdkafka was told to pause it. Not known at first: librdkafka remembers it of an earlier assignment.
    paused: Option<bool>,
    /// Too many records are open.
    ahead: bool,
}

struct Waiting {
    record: Record,
    origin: Origin,
    bytes: usize,
}

impl Partition {
    fn new(generation: u64, lease: CancellationToken) -> Partition {
        Partition {
            generation,
            offsets: Offsets::default(),
            stored: None,
            under_way: 0,
            keys: HashMap::new(),
            early: VecDeque::new(),
            lease,
            cut: CancellationToken::new(),
            paused: None,
            ahead: false,
        }
    }
}

impl Assignment {
    /// An empty one. `stop` withdraws every lease, before the thread that polls notices it.
    pub(super) fn new(bounds: Bounds, metrics: ConsumerMetrics, begin: Begin, stop: CancellationToken) -> Assignment {
        Assignment { begin, bounds, metrics, stop, state: Mutex::default(), ended: Condvar::new() }
    }

    /// Partitions came.
    pub(super) fn assigned(&self, places: Vec<Place>) {
        let mut state = self.lock();
        for place in places {
            state.generations += 1;
            let partition = Partition::new(state.generations, self.stop.child_token());
            if state.closed {
                partition.lease.cancel();
            }
            state.partitions.insert(place, partition);
        }
        state.reflow = true;
        self.metrics.partitions(state.partitions.len());
    }

    /// A record came. It is begun, or waits for an earlier one of its key. Ignored is what comes for a partition that
    /// gives up its records: none of its later ones is taken either, so the position does not pass it.
    pub(super) fn take(self: &Arc<Self>, record: Record, origin: Origin, delay: Duration) {
        // Not under the lock: where the runtime has ended, the ticket is dropped at once.
        if let Some(begun) = self.accept(record, origin, delay) {
            (self.begin)(begun);
        }
    }

    /// Begins what has become due, as far as there is room.
    pub(super) fn begin_due(self: &Arc<Self>) {
        loop {
            let begun = {
                let mut guard = self.lock();
                let state = &mut *guard;
                if !self.has_room(state) {
                    return;
                }
                let now = Instant::now();
                let due = |partition: &&mut Partition| partition.early.front().is_some_and(|(due, _)| *due <= now);
                let Some(partition) = state.partitions.values_mut().find(due) else { return };
                let Some((_, waiting)) = partition.early.pop_front() else { return };
                state.reflow = true;
                let (records, bytes) = (&mut state.records, &mut state.bytes);
                (*records, *bytes) = (*records + 1, *bytes + waiting.bytes);
                self.metrics.held(*records, *bytes);
                partition.offsets.begin(waiting.origin.offset, now);
                self.begun_or_behind(partition, waiting)
            };
            if let Some(begun) = begun {
                (self.begin)(begun);
            }
        }
    }

    fn accept(self: &Arc<Self>, record: Record, origin: Origin, delay: Duration) -> Option<Begun> {
        let place = (origin.topic.clone(), origin.partition);
        let mut guard = self.lock();
        let state = &mut *guard;
        let partition = state.partitions.get_mut(&place).filter(|partition| !partition.lease.is_cancelled())?;
        let behind = partition.early.back().is_some_and(|(_, early)| origin.offset <= early.origin.offset);
        if behind || !partition.offsets.follows(origin.offset) {
            // Another log than the one before: what is under way belongs to the one that is gone.
            tracing::error!(
                topic = &*origin.topic,
                partition = origin.partition,
                offset = origin.offset,
                "records come again from an earlier offset, as of a topic made anew: starting over"
            );
            self.metrics.overlapped(partition.under_way);
            let (records, bytes) = partition.give_up();
            (state.records, state.bytes) = (state.records - records, state.bytes - bytes);
            state.leaving += partition.under_way;
            partition.cut.cancel();
            state.generations += 1;
            *partition =
                Partition { paused: partition.paused, ..Partition::new(state.generations, self.stop.child_token()) };
        }
        // It should not have come, so librdkafka does not have it paused: to be told again.
        if partition.paused == Some(true) {
            tracing::debug!(topic = &*place.0, partition = place.1, "a record came although its partition is paused");
            partition.paused = None;
            state.reflow = true;
        }
        let bytes = size(&record);
        let waiting = Waiting { record, origin, bytes };
        let now = Instant::now();
        if !delay.is_zero() || !partition.early.is_empty() {
            partition.early.push_back((now + delay, waiting));
            state.reflow = true;
            return None;
        }
        partition.offsets.begin(waiting.origin.offset, now);
        state.reflow |= !partition.ahead && partition.offsets.open() >= MOST_OPEN;
        state.records += 1;
        state.bytes += bytes;
        self.metrics.held(state.records, state.bytes);
        self.begun_or_behind(partition, waiting)
    }

    /// Begins a record, or has it wait for an earlier one of its key.
    fn begun_or_behind(self: &Arc<Self>, partition: &mut Partition, waiting: Waiting) -> Option<Begun> {
        if let Some(key) = &waiting.record.key {
            if let Some(queue) = partition.keys.get_mut(key) {
                queue.push_back(waiting);
                return None;
            }
            partition.keys.insert(key.clone(), VecDeque::new());
        }
        Some(self.begun(partition, waiting))
    }

    fn begun(self: &Arc<Self>, partition: &mut Partition, waiting: Waiting) -> Begun {
        let Waiting { record, origin, bytes } = waiting;
        partition.under_way += 1;
        let ticket = Ticket {
            assignment: self.clone(),
            place: (origin.topic.clone(), origin.partition),
            generation: partition.generation,
            offset: origin.offset,
            bytes,
            key: record.key.clone(),
            end: End::Cut,
        };
        let consumed = Consumed { record, origin, lease: Lease(partition.lease.clone()) };
        Begun { consumed, ticket, cut: partition.cut.clone() }
    }

    fn ended(self: &Arc<Self>, ticket: &Ticket) {
        let next = {
            let mut guard = self.lock();
            let state = &mut *guard;
            state.records -= 1;
            state.bytes -= ticket.bytes;
            self.metrics.held(state.records, state.bytes);
            self.settle(state, ticket)
        };
        self.ended.notify_all();
        if let Some(begun) = next {
            (self.begin)(begun);
        }
    }

    /// Notes how a record ended, and what may begin in its place.
    fn settle(self: &Arc<Self>, state: &mut State, ticket: &Ticket) -> Option<Begun> {
        let (topic, partition, offset) = (ticket.place.0.clone(), ticket.place.1, ticket.offset);
        let own = state.partitions.get_mut(&ticket.place).filter(|own| own.generation == ticket.generation);
        let counts = ticket.end == End::Done && own.is_some();
        self.metrics.record_ended(&topic, counts);
        let withdrawn = own.as_ref().is_none_or(|own| own.lease.is_cancelled());
        let fault = match ticket.end {
            End::Panicked => Some(ConsumerError::Panicked { topic, partition, offset }),
            // Nobody had asked for it, and without a new assignment nobody would do it again.
            End::Abandoned if !withdrawn => Some(ConsumerError::GivenBack { topic, partition, offset }),
            End::Done | End::Abandoned | End::Cut => None,
        };
        if let Some(fault) = fault {
            state.fault.get_or_insert(fault);
        }
        let Some(own) = own else {
            state.leaving -= 1;
            return None;
        };
        own.under_way -= 1;
        if ticket.end == End::Done {
            own.offsets.done(ticket.offset);
            state.reflow |= own.ahead && own.offsets.open() < share(MOST_OPEN);
        }
        let key = ticket.key.as_ref()?;
        // What waits behind a record that is not done stays behind it; without a lease nothing waits any more.
        if ticket.end != End::Done || withdrawn || state.fault.is_some() {
            return None;
        }
        match own.keys.get_mut(key).and_then(VecDeque::pop_front) {
            Some(waiting) => Some(self.begun(own, waiting)),
            None => {
                own.keys.remove(key);
                None
            }
        }
    }

    /// Asks what is under way in these partitions to come to an end, and drops what has not begun.
    pub(super) fn withdraw(&self, places: &[Place]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for place in places {
            if let Some(partition) = state.partitions.get_mut(place) {
                let (records, bytes) = partition.give_up();
                (state.records, state.bytes) = (state.records - records, state.bytes - bytes);
            }
        }
        self.metrics.held(state.records, state.bytes);
    }

    /// Withdraws all partitions, and those that come from now on.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.reflow) = (true, true);
        drop(state);
        self.withdraw(&self.places());
    }

    /// All partitions that are assigned.
    pub(super) fn places(&self) -> Vec<Place> {
        self.lock().partitions.keys().cloned().collect()
    }

    /// Records under way in these partitions.
    pub(super) fn under_way(&self, places: &[Place]) -> usize {
        self.lock().under_way(places)
    }

    /// Blocks until nothing is under way in these partitions, or until the deadline.
    pub(super) fn wait(&self, places: &[Place], deadline: Instant) {
        loop {
            let state = self.lock();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.under_way(places) == 0 || left.is_zero() {
                return;
            }
            drop(self.ended.wait_timeout(state, left.min(TELL_AGE)).expect("no panic while held"));
            self.tell_age();
        }
    }

    /// Blocks until all work that was broken off has let go of its record, or until the deadline: work that does not
    /// yield cannot be broken off.
    pub(super) fn wait_left(&self, deadline: Instant) {
        let mut state = self.lock();
        while state.leaving > 0 && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.ended.wait_timeout(state, left).expect("no panic while held").0;
        }
    }

    /// The positions that have moved since they were last asked for.
    pub(super) fn moved(&self) -> Vec<(Place, i64)> {
        let mut state = self.lock();
        let mut moved = Vec::new();
        for (place, partition) in &mut state.partitions {
            if let Some(position) = partition.offsets.position()
                && partition.stored != Some(position)
            {
                partition.stored = Some(position);
                moved.push((place.clone(), position));
            }
        }
        moved
    }

    /// Breaks off what is under way in these partitions, and forgets them. How many records were under way.
    pub(super) fn remove(&self, places: &[Place]) -> usize {
        self.withdraw(places);
        let mut state = self.lock();
        let mut under_way = 0;
        for place in places {
            if let Some(partition) = state.partitions.remove(place) {
                partition.cut.cancel();
                under_way += partition.under_way;
                state.leaving += partition.under_way;
                self.metrics.lag_unknown(&place.0, place.1);
            }
        }
        self.metrics.partitions(state.partitions.len());
        state.reflow = true;
        if state.partitions.is_empty() {
            self.metrics.paused(false);
        }
        self.metrics.overlapped(under_way);
        under_way
    }

    /// What is to be paused and resumed now; it counts on that being done.
    pub(super) fn flow(&self) -> Flow {
        let mut guard = self.lock();
        let state = &mut *guard;
        if self.has_room(state) {
            state.no_room_since = None;
        } else {
            state.no_room_since.get_or_insert_with(Instant::now);
        }
        let full = if state.full {
            state.records > share(self.bounds.records) || state.bytes > share(self.bounds.bytes)
        } else {
            state.no_room_since.is_some_and(|since| since.elapsed() >= self.bounds.pause_after)
        };
        let mut flow = Flow::default();
        if full == state.full && !state.reflow {
            return flow;
        }
        (state.full, state.reflow) = (full, false);
        let mut any = false;
        for (place, partition) in &mut state.partitions {
            let most_open = if partition.ahead { share(MOST_OPEN) } else { MOST_OPEN };
            partition.ahead = partition.offsets.open() >= most_open;
            let pause = full || state.closed || partition.ahead;
            any |= pause;
            let pause = pause || !partition.early.is_empty();
            if partition.paused != Some(pause) {
                partition.paused = Some(pause);
                if pause { &mut flow.pause } else { &mut flow.resume }.push(place.clone());
            }
        }
        self.metrics.paused(any);
        flow
    }

    /// Blocks until it can be polled, or for `limit`: until there is room for a record, or none can come since all
    /// partitions are paused. Whether it can.
    pub(super) fn wait_room(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if state.full || self.has_room(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.ended.wait_timeout(state, left).expect("no panic while held").0;
        }
    }

    fn has_room(&self, state: &State) -> bool {
        state.records < self.bounds.records && state.bytes < self.bounds.bytes
    }

    /// Whether all partitions are paused because there was no room for long.
    pub(super) fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Why the consumer cannot go on, if it cannot.
    pub(super) fn fault(&self) -> Option<ConsumerError> {
        self.lock().fault.take()
    }

    /// Shows the age of the oldest unfinished record.
    pub(super) fn tell_age(&self) {
        let oldest = self.lock().partitions.values().filter_map(|partition| partition.offsets.oldest()).min();
        self.metrics.oldest(oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed()));
    }

    /// The partitions, for who asks how far they are behind.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let state = self.lock();
        let watched = |(place, partition): (&Place, &Partition)| Watched {
            place: place.clone(),
            generation: partition.generation,
            reached: partition.offsets.reached(),
        };
        state.partitions.iter().map(watched).collect()
    }

    /// Shows how far a partition is behind, unless it has gone meanwhile.
    pub(super) fn tell_lag(&self, watched: &Watched, lag: i64) {
        let state = self.lock();
        if state.partitions.get(&watched.place).is_some_and(|own| own.generation == watched.generation) {
            self.metrics.lag(&watched.place.0, watched.place.1, lag);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl State {
    fn under_way(&self, places: &[Place]) -> usize {
        places.iter().filter_map(|place| self.partitions.get(place)).map(|partition| partition.under_way).sum()
    }
}

impl Partition {
    /// Withdraws the lease and drops what waits: how many records, and their bytes. They stay unfinished.
    fn give_up(&mut self) -> (usize, usize) {
        self.lease.cancel();
        self.early.clear();
        let waiting = self.keys.drain().flat_map(|(_, queue)| queue);
        waiting.fold((0, 0), |(records, bytes), waiting| (records + 1, bytes + waiting.bytes))
    }
}

/// How much may still be held where something paused is resumed.
fn share(bound: usize) -> usize {
    let (part, of) = RESUME_AT;
    // Less than the bound also where that is 1; and no overflow.
    (bound / of * part + bound % of * part / of).min(bound.saturating_sub(1))
}

/// The bytes of a record, as far as senders decide them.
fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.payload.len() + record.key.as_ref().map_or(0, Bytes::len) + headers
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use proptest::prelude::*;

    use super::*;

    /// An assignment whose begun records are kept for the test to end.
    struct Desk {
        assignment: Arc<Assignment>,
        begun: Arc<Mutex<Vec<Begun>>>,
    }

    impl Desk {
        fn new(most_records: usize, most_bytes: usize) -> Desk {
            let metrics = ConsumerMetrics::new(&Registry::new(), "test", &["a"]).expect("the registry is new");
            let bounds = Bounds { records: most_records, bytes: most_bytes, pause_after: Duration::ZERO };
            let begun = Arc::new(Mutex::new(Vec::new()));
            let keep = begun.clone();
            let begin = Box::new(move |record| keep.lock().expect("no panic while held").push(record));
            Desk { assignment: Arc::new(Assignment::new(bounds, metrics, begin, CancellationToken::new())), begun }
        }

        fn take(&self, partition: i32, offset: i64, key: Option<&'static str>) {
            self.take_after(partition, offset, key, Duration::ZERO);
        }

        fn take_after(&self, partition: i32, offset: i64, key: Option<&'static str>, delay: Duration) {
            let record = Record {
                topic: "a".into(),
                key: key.map(|key| Bytes::from_static(key.as_bytes())),
                headers: Vec::new(),
                payload: Bytes::from_static(&[b'x'; 10]),
            };
            self.assignment.take(record, Origin { topic: "a".into(), partition, offset, timestamp_ms: None }, delay);
        }

        /// Begins what is due until this one is.
        fn until_begun(&self, offset: i64) {
            let began = Instant::now();
            while !self.offsets().contains(&offset) {
                assert!(began.elapsed() < Duration::from_secs(60), "{offset} does not become due");
                self.assignment.begin_due();
                std::thread::yield_now();
            }
        }

        fn offsets(&self) -> Vec<i64> {
            self.begun.lock().expect("no panic while held").iter().map(|begun| begun.consumed.origin.offset).collect()
        }

        fn end(&self, offset: i64, end: End) {
            let mut begun = self.begun.lock().expect("no panic while held");
            let at = begun.iter().position(|begun| begun.consumed.origin.offset == offset).expect("it is under way");
            let ended = begun.remove(at);
            // Its end may begin another one.
            drop(begun);
            ended.ticket.end(end);
        }

        fn held(&self) -> (usize, usize, usize) {
            let state = self.assignment.lock();
            (state.records, state.bytes, state.leaving)
        }
    }

    impl Drop for Desk {
        /// Tickets know the assignment, and it knows how to begin.
        fn drop(&mut self) {
            let begun = std::mem::take(&mut *self.begun.lock().expect("no panic while held"));
            drop(begun);
        }
    }

    fn place(partition: i32) -> Place {
        ("a".into(), partition)
    }

    #[test]
    fn what_is_not_due_pauses_its_partition_and_holds_nothing() {
        let desk = Desk::new(2, 1_000);
        desk.assignment.assigned(vec![place(0), place(1)]);
        desk.assignment.flow();
        let soon = Duration::from_millis(30);
        desk.take(0, 4, None);
        desk.take_after(0, 5, Some("k"), soon);
        assert_eq!(desk.assignment.flow(), Flow { pause: vec![place(0)], resume: vec![] });
        // One that comes all the same waits behind it, although it is due.
        desk.take(0, 6, Some("k"));
        desk.take(1, 9, None);
        assert_eq!((desk.offsets(), desk.held().0), (vec![4, 9], 2));
        desk.end(4, End::Done);
        assert_eq!(desk.assignment.moved(), [(place(0), 5)], "an offset passes none that waits");
        desk.until_begun(5);
        assert_eq!(desk.offsets(), [9, 5], "as far as there is room");
        desk.end(9, End::Done);
        desk.assignment.begin_due();
        assert_eq!((desk.offsets(), desk.held().0), (vec![5], 2), "the other waits for its key");
        desk.end(5, End::Done);
        desk.end(6, End::Done);
        assert_eq!(desk.assignment.flow().resume, [place(0)]);
        let mut moved = desk.assignment.moved();
        moved.sort();
        assert_eq!(moved, [(place(0), 7), (place(1), 10)]);

        // A log made anew, and a partition that goes, forget it.
        desk.take_after(0, 8, None, soon);
        desk.take(0, 3, None);
        assert_eq!((desk.offsets(), desk.held().0), (vec![3], 1));
        desk.take_after(0, 4, None, soon);
        desk.assignment.remove(&[place(0)]);
        desk.take_after(1, 20, None, soon);
        desk.until_begun(20);
        assert_eq!(desk.offsets(), [3, 20]);
    }

    #[test]
    fn an_end_counts_only_for_its_own_assignment() {
        let desk = Desk::new(100, 1_000);
        desk.take(0, 1, None);
        assert_eq!(desk.held(), (0, 0, 0), "nothing is taken of a partition that is not assigned");
        desk.assignment.assigned(vec![place(0)]);
        desk.take(0, 1, None);
        desk.take(0, 2, Some("k"));
        desk.take(0, 3, Some("k"));
        assert_eq!((desk.offsets(), desk.held().0), (vec![1, 2], 3));

        desk.assignment.withdraw(&[place(0)]);
        assert_eq!(desk.held(), (2, 21, 0), "what waits is dropped");
        desk.take(0, 4, None);
        desk.end(2, End::Done);
        assert_eq!(desk.offsets(), [1], "nothing is begun under a withdrawn lease");
        assert_eq!(desk.assignment.moved(), []);
        assert_eq!(desk.assignment.remove(&[place(0)]), 1);
        assert!(desk.begun.lock().expect("no panic while held")[0].cut.is_cancelled());

        desk.assignment.assigned(vec![place(0)]);
        desk.take(0, 1, None);
        assert_eq!((desk.offsets(), desk.held()), (vec![1, 1], (2, 20, 1)));
        // The first of the two is the earlier assignment's.
        desk.end(1, End::Done);
        assert_eq!((desk.assignment.moved(), desk.held()), (vec![], (1, 10, 0)));
        desk.end(1, End::Done);
        assert_eq!(desk.assignment.moved(), [(place(0), 2)]);
        assert_eq!(desk.assignment.moved(), [], "told once");
        assert!(desk.assignment.fault().is_none());
    }

    #[test]
    fn a_log_that_begins_anew_is_followed() {
        let desk = Desk::new(100, 1_000);
        desk.assignment.assigned(vec![place(0)]);
        for offset in [50, 51] {
            desk.take(0, offset, Some("k"));
        }
        desk.take(0, 0, Some("k"));
        assert_eq!((desk.offsets(), desk.held()), (vec![50, 0], (2, 22, 1)));
        desk.end(0, End::Done);
        desk.end(50, End::Done);
        assert_eq!((desk.assignment.moved(), desk.held()), (vec![(place(0), 1)], (0, 0, 0)));
    }

    #[test]
    fn a_partition_that_runs_ahead_is_paused_alone() {
        let desk = Desk::new(usize::MAX, usize::MAX);
        desk.assignment.assigned(vec![place(0), place(1)]);
        let mut first = desk.assignment.flow();
        first.resume.sort();
        assert_eq!(first, Flow { pause: vec![], resume: vec![place(0), place(1)] }, "whatever was before");
        desk.take(0, 0, None);
        for offset in 1..MOST_OPEN as i64 {
            desk.take(0, offset, None);
            desk.end(offset, End::Done);
        }
        assert_eq!(desk.assignment.flow(), Flow { pause: vec![place(0)], resume: vec![] });
        assert_eq!(desk.assignment.flow(), Flow::default());
        desk.end(0, End::Done);
        assert_eq!(desk.assignment.flow(), Flow { pause: vec![], resume: vec![place(0)] });
        assert_eq!(desk.assignment.moved(), [(place(0), MOST_OPEN as i64)]);
    }

    #[test]
    fn pauses_begin_at_the_bound_and_end_below_it() {
        for (bound, resumed_at) in [(1, 0), (2, 1), (4, 3), (200, 150)] {
            let desk = Desk::new(bound, usize::MAX);
            desk.assignment.assigned(vec![place(0)]);
            desk.assignment.flow();
            for offset in 0..bound as i64 {
                assert_eq!(desk.assignment.flow(), Flow::default());
                desk.take(0, offset, None);
            }
            assert!(!desk.assignment.wait_room(Duration::ZERO), "nothing is polled without room");
            assert_eq!(desk.assignment.flow().pause, [place(0)]);
            assert!(desk.assignment.wait_room(Duration::ZERO), "it is polled for the group's sake");
            for held in (resumed_at..bound).rev() {
                assert_eq!(desk.assignment.flow(), Flow::default(), "{held} of {bound}");
                desk.end(held as i64, End::Done);
            }
            assert_eq!(desk.assignment.flow().resume, [place(0)], "{bound}");
        }
    }

    proptest! {
        /// Whatever comes and ends, partitions going and coming in between: one of a key is under way at a time, in
        /// order; what is held is what was taken and neither ended nor dropped; and all of it is let go in the end.
        #[test]
        fn nothing_held_is_forgotten(
            steps in prop::collection::vec((0_u8..10, 0_i32..3, 0_usize..4, any::<prop::sample::Index>()), 1..200),
        ) {
            const KEYS: [Option<&str>; 4] = [None, Some("k"), Some("l"), Some("m")];
            let desk = Desk::new(usize::MAX, usize::MAX);
            desk.assignment.assigned((0..3).map(place).collect());
            let mut next = [0_i64; 3];
            for (step, partition, key, which) in steps {
                match step {
                    0..5 => {
                        let offset = &mut next[partition as usize];
                        // Unique over all partitions, so that the desk finds it.
                        desk.take(partition, *offset * 3 + i64::from(partition), KEYS[key]);
                        *offset += 1;
                    }
                    5..9 => {
                        let offsets = desk.offsets();
                        if !offsets.is_empty() {
                            desk.end(offsets[which.index(offsets.len())], End::Done);
                        }
                    }
                    _ => {
                        desk.assignment.remove(&[place(partition)]);
                        desk.assignment.assigned(vec![place(partition)]);
                    }
                }
                let begun = desk.begun.lock().expect("no panic while held");
                let mut keys: Vec<_> = begun
                    .iter()
                    .filter(|begun| !begun.cut.is_cancelled())
                    .filter_map(|begun| Some((begun.consumed.origin.partition, begun.consumed.record.key.clone()?)))
                    .collect();
                keys.sort();
                let under_way = keys.len();
                keys.dedup();
                prop_assert_eq!(under_way, keys.len(), "two of a key are under way");
                let under_way = begun.len();
                drop(begun);
                let waiting: usize = {
                    let state = desk.assignment.lock();
                    state.partitions.values().flat_map(|own| own.keys.values()).map(VecDeque::len).sum()
                };
                prop_assert_eq!(desk.held().0, under_way + waiting);
            }
            while let Some(offset) = desk.offsets().first().copied() {
                desk.end(offset, End::Done);
            }
            prop_assert_eq!(desk.held(), (0, 0, 0));
            for (place, position) in desk.assignment.moved() {
                prop_assert_eq!(position, (next[place.1 as usize] - 1) * 3 + i64::from(place.1) + 1);
            }
        }
    }
}
