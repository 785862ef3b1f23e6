//! What the server writes into its log, by request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, OnceLock};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// One log event: field → value.
pub type Event = BTreeMap<String, String>;

/// The event of an access line.
const ACCESS: &str = "http.request";

/// All events in order, and which of them belong to a request.
#[derive(Default)]
struct Events {
    all: Vec<Event>,
    of_request: HashMap<String, Vec<usize>>,
}

fn events() -> MutexGuard<'static, Events> {
    static EVENTS: OnceLock<Mutex<Events>> = OnceLock::new();
    EVENTS.get_or_init(Mutex::default).lock().unwrap()
}

/// Collects from now on.
pub fn collect() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        tracing_subscriber::registry()
            .with(tracing_subscriber::filter::LevelFilter::INFO)
            .with(Collector)
            .init();
    });
}

/// The events of one request, in order, but for its access line.
pub fn of(request_id: &str) -> Vec<Event> {
    let mut events = lines(request_id);
    events.retain(|event| event["event"] != ACCESS);
    events
}

/// The access lines of one request.
pub fn accesses(request_id: &str) -> Vec<Event> {
    let mut events = lines(request_id);
    events.retain(|event| event["event"] == ACCESS);
    events
}

fn lines(request_id: &str) -> Vec<Event> {
    let events = events();
    let of_request = events.of_request.get(request_id);
    let indices = of_request.into_iter().flatten();
    indices.map(|index| events.all[*index].clone()).collect()
}

/// Everything so far.
pub fn all() -> Vec<Event> {
    events().all.clone()
}

/// How many events there are, to mark a place.
pub fn mark() -> usize {
    events().all.len()
}

/// The events after a mark.
pub fn since(mark: usize) -> Vec<Event> {
    events().all[mark..].to_vec()
}

struct Collector;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Collector {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        fields
            .0
            .insert("level".to_owned(), event.metadata().level().to_string());
        let mut events = events();
        if let Some(id) = fields.0.get("request_id") {
            let index = events.all.len();
            events.of_request.entry(id.clone()).or_default().push(index);
        }
        events.all.push(fields.0);
    }
}

struct Fields(Event);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}
