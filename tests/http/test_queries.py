"""A query parameter that a route reads is given once; what it does not read harms nobody."""

from fastapi import FastAPI
from starlette.testclient import TestClient

VALUES = {"user_id": "u", "version": "a000001-000000000000", "window_id": "1", "item_id": "i", "recommendation_id": "r"}


def test_every_parameter_is_refused_when_it_is_given_twice(app: FastAPI, admin: TestClient) -> None:
    asked = 0
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            for name in [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]:
                reply = admin.request(method, path.format_map(VALUES), params=[(name, "1"), (name, "1")])
                assert (reply.status_code, reply.json()["errors"]) == (
                    422,
                    [{"pointer": f"/query/{name}", "code": "repeated", "detail": "it is given more than once"}],
                ), f"{method} {path}"
                asked += 1
    assert asked >= 15


def test_what_a_route_does_not_read_may_repeat(admin: TestClient) -> None:
    assert admin.get("/v1/admin/audit?utm=1&utm=2&limit=1").status_code == 200
    assert admin.get("/v1/admin/audit?limit=1&limit").status_code == 422
