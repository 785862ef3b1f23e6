-- Asks portcullis-guard about each request. /etc/haproxy/portcullis-guard.lua

local GUARD = "http://127.0.0.1:9180/check"
local TIMEOUT_MS = 5000

-- Headers with the identity of the caller, set by the guard.
local IDENTITY = {
    "x-portcullis-subject", "x-portcullis-client", "x-portcullis-scope", "x-portcullis-acr",
}

-- Request headers that are not copied to the guard: they belong to the connection, or are set below.
local OURS = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
    ["keep-alive"] = true, ["te"] = true, ["trailer"] = true, ["transfer-encoding"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true,
}

-- An upgrade to WebSocket is for the service and is hidden from the guard. The guard sees every other
-- upgrade and refuses it.
local function is_websocket(name, values)
    return name == "upgrade" and #values == 0 and values[0]:lower() == "websocket"
end

-- Returns the values of a header as a list. HAProxy numbers them from 0.
local function all(values)
    local list = {}
    for at = 0, #values do
        list[#list + 1] = values[at]
    end
    return list
end

local function first(headers, name)
    local values = headers and headers[name]
    return values and values[0]
end

-- Ends the request with the response of the guard.
local function refuse(txn, status, answer)
    local reply = txn:reply({ status = status, body = answer.body })
    reply:add_header("cache-control", "no-store")
    for _, name in ipairs({ "www-authenticate", "content-type" }) do
        local value = first(answer.headers, name)
        if value then
            reply:add_header(name, value)
        end
    end
    if status == 503 then
        reply:add_header("retry-after", first(answer.headers, "retry-after") or "2")
    end
    txn:done(reply)
end

core.register_action("portcullis_guard", { "http-req" }, function(txn)
    local headers = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not OURS[name] and not is_websocket(name, values) then
            headers[name] = all(values)
        end
    end
    headers["x-forwarded-method"] = { txn.f:method() }
    headers["x-forwarded-uri"] = { txn.f:pathq() }

    local answer = core.httpclient():get({ url = GUARD, headers = headers, timeout = TIMEOUT_MS })
    if not answer or answer.status ~= 200 then
        local status = answer and answer.status
        local known = status == 401 or status == 403 or status == 503
        -- Deny the request with 503 if the guard cannot be reached or answers with another status.
        return refuse(txn, known and status or 503, answer or {})
    end
    for _, name in ipairs(IDENTITY) do
        local value = first(answer.headers, name)
        if value and value ~= "" then
            txn.http:req_set_header(name, value)
        else
            txn.http:req_del_header(name)
        end
    end
    txn:set_var("txn.portcullis_passed", true)
end)
