"""The MCP server beside the real service, asked by the public client over standard input and output."""

import sys

import anyio

TOOLS = {
    "list_models",
    "list_jobs",
    "list_recipes",
    "list_targets",
    "compress",
    "wait",
    "report",
    "card",
    "download",
    "cancel",
}


def _ask(embedded, key, talk):
    """Start the server as an agent's host does, and talk to it."""
    # Here: it takes a second to load, and every process with tests reads this file.
    import mcp
    from mcp import StdioServerParameters

    async def session():
        env = {"ONNXPRESS_URL": embedded.url, "ONNXPRESS_API_KEY": key}
        started = StdioServerParameters(command=sys.executable, args=["-m", "onnxpress", "mcp"], env=env)
        async with mcp.Client(started, read_timeout_seconds=120) as client:
            return await talk(client)

    return anyio.run(session)


def test_an_agent_reads_submits_waits_and_reports(embedded, key, net, npz, tmp_path):
    async def talk(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == TOOLS
        assert tools["compress"].input_schema["required"] == ["model"]
        assert "client" not in tools["compress"].input_schema["properties"]
        asked = {
            "model": str(net),
            "data": str(npz),
            "recipe": "simplify",
            "max_drop": "50%",
            "gates": ["size_bytes max 1MB"],
        }
        job = (await client.call_tool("compress", asked)).structured_content
        waited = job
        while not waited["finished"]:
            waited = (await client.call_tool("wait", {"job": job["id"], "seconds": 20})).structured_content
        assert (waited["status"], waited["verdict"]) == ("succeeded", "pass")
        report = (await client.call_tool("report", {"job": job["id"]})).content[0].text
        assert report.startswith("# Compression report: pass")
        card = (await client.call_tool("card", {"model": job["id"]})).content[0].text
        assert "InferenceSession" in card
        target = tmp_path / "small.onnx"
        await client.call_tool("download", {"model": job["id"], "path": str(target)})
        assert target.stat().st_size > 0
        again = await client.call_tool("download", {"model": job["id"], "path": str(target)})
        assert again.is_error
        assert "is there already" in again.content[0].text
        wrong = await client.call_tool("compress", {"model": str(net), "goal": "beauty"})
        assert wrong.is_error
        assert "latency, size, memory, macs" in wrong.content[0].text

    _ask(embedded, key, talk)


def test_a_key_that_does_not_open_is_said_to_the_agent(embedded):
    async def talk(client):
        refused = await client.call_tool("list_models", {})
        assert refused.is_error
        assert "key" in refused.content[0].text

    _ask(embedded, "opk_wrong_key", talk)


def test_without_the_package_the_line_that_installs_it_is_said(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    done = cli("http://127.0.0.1:9", "none", "mcp")
    assert done.code == 2
    assert "pip install 'onnxpress[mcp]'" in done.stderr
