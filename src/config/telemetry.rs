//! Section `telemetry`: the collector of traces. Requires a binary with the feature `otel`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Traces in the OpenTelemetry format, over OTLP with HTTP.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// The collector, such as `http://127.0.0.1:4318`. Without one, no traces are sent. Alias
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<String>,
    /// The name of this server in traces. Default `portcullis`. Alias `OTEL_SERVICE_NAME`.
    pub service_name: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            endpoint: None,
            service_name: "portcullis".to_owned(),
        }
    }
}

impl Telemetry {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        match url::Url::parse(endpoint) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
            _ => Err(ConfigError::key(
                "telemetry.endpoint",
                "is not an http or https URL",
            )),
        }
    }
}
