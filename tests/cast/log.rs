//! What the server writes into its log, by request.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// One log event: field → value.
pub type Event = BTreeMap<String, String>;

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

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

/// The events of one request, in order.
pub fn of(request_id: &str) -> Vec<Event> {
    let events = EVENTS.lock().unwrap();
    events
        .iter()
        .filter(|event| event.get("request_id").is_some_and(|id| id == request_id))
        .cloned()
        .collect()
}

/// Everything so far.
pub fn all() -> Vec<Event> {
    EVENTS.lock().unwrap().clone()
}

/// How many events there are, to mark a place.
pub fn mark() -> usize {
    EVENTS.lock().unwrap().len()
}

/// The events after a mark.
pub fn since(mark: usize) -> Vec<Event> {
    EVENTS.lock().unwrap()[mark..].to_vec()
}

struct Collector;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Collector {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        fields
            .0
            .insert("level".to_owned(), event.metadata().level().to_string());
        EVENTS.lock().unwrap().push(fields.0);
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
