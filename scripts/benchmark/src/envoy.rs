//! Envoy with its gRPC-JSON transcoder, the usual alternative to a gateway of one's own. It uses the same `google.api.http`
//! annotations.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Context as _;
use serde_json::json;
use tokio::process::Command;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// Builds the command of an Envoy on `addr` in front of the product service at `service`. Envoy reads the file `descriptors`
/// at its start.
pub fn command(
    binary: &Path,
    addr: SocketAddr,
    service: &str,
    descriptors: &Path,
) -> anyhow::Result<Command> {
    fs::write(descriptors, shoppee_proto::FILE_DESCRIPTOR_SET)?;
    let service: SocketAddr = service.trim_start_matches("http://").parse().context("the product service")?;
    let at = |addr: SocketAddr| json!({"socket_address": {"address": addr.ip(), "port_value": addr.port()}});
    let transcoder = json!({
        "@type": format!("{TYPE}.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"),
        "proto_descriptor": descriptors,
        "services": ["shoppee.product.v1.ProductService"],
    });
    let routes = json!({"match": {"prefix": "/"}, "route": {"cluster": "product"}});
    let manager = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "rest",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [routes]}]},
        "http_filters": [
            {"name": "transcoder", "typed_config": transcoder},
            {"name": "router", "typed_config": {"@type": format!("{TYPE}.filters.http.router.v3.Router")}},
        ],
    });
    let http2 = json!({
        "@type": format!("{TYPE}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let configuration = json!({"static_resources": {
        "listeners": [{
            "address": at(addr),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }],
        "clusters": [{
            "name": "product",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {
                "cluster_name": "product",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(service)}}]}],
            },
        }],
    }});
    let mut command = Command::new(binary);
    // One worker per core, as the other servers have.
    let cores = std::thread::available_parallelism()?.to_string();
    command.args(["--concurrency", &cores, "--disable-hot-restart", "--log-level", "error"]);
    command.args(["--config-yaml", &configuration.to_string()]);
    Ok(command)
}
