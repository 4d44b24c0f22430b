"""Sends every example of the OpenAPI document to a demo shop that is new, as the document has it: each must succeed.

examples.py RUN_FILE

Replaced are only secrets, and the ids of orders, sessions and of a category to remove, which no document can know.
"""

import json
import sys
import urllib.error
import urllib.request

from ask import get, post, read, token

# Ends sessions, or needs another password afterwards: last, in this order.
LAST = ["revokeSession", "refresh", "changePassword", "logout", "logoutAll"]
# What must have happened to an order before.
BEFORE = {"shipOrder": ["payOrder"], "completeOrder": ["payOrder", "shipOrder"]}


class Examples:
    def __init__(self, run_file):
        run, self.url = read(run_file)
        paths = json.loads(get(f"{self.url}/openapi.json"))["paths"]
        self.operations = {
            it["operationId"]: (method.upper(), path, it)
            for path, item in paths.items() for method, it in item.items()
        }
        self.admin = token(self.url, run["admin"]["username"], run["admin"]["password"])
        self.customer = None
        self.created = {}

    def body(self, name):
        content = self.operations[name][2].get("requestBody", {}).get("content", {})
        return content.get("application/json", {}).get("example")

    def send(self, name, path=None, body=None):
        """Returns status and body of an operation's answer; sent are its examples where nothing else is given."""
        method, template, it = self.operations[name]
        path, query = path or template, []
        for parameter in it.get("parameters", []):
            if "example" in parameter and parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
            elif "example" in parameter and parameter["in"] == "query":
                query.append(f"{parameter['name']}={parameter['example']}")
        headers = {"content-type": "application/json"}
        if it.get("security"):
            headers["authorization"] = f"Bearer {self.admin if self.is_for_admins(it) else self.customer}"
        body = body or self.body(name)
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}{path}{'?' if query else ''}{'&'.join(query)}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    @staticmethod
    def is_for_admins(it):
        return it["description"].startswith("For admins.")

    def sign_in(self, password=None):
        body = self.body("login")
        return post(f"{self.url}/api/v1/auth/login", body | {"password": password or body["password"]})

    def order(self, name):
        """The id of a new order on which the operation can be done."""
        status, text = self.send("createOrder")
        if status != 201:
            sys.exit(f"createOrder: {status} instead of 201: {text}")
        order = json.loads(text)["id"]
        for step in BEFORE.get(name, []):
            self.send(step, self.operations[step][1].replace("{id}", order))
        return order

    def attempt(self, name):
        """Sends the example of one operation; returns what went wrong, if anything did."""
        path, body = self.operations[name][1], None
        if path.startswith("/api/v1/orders/{id}"):
            path = path.replace("{id}", self.order(name))
        elif name == "revokeSession":
            self.sign_in()
            sessions = json.loads(self.send("listSessions")[1])["items"]
            path = path.replace("{id}", next(one["id"] for one in sessions if not one["current"]))
        elif name == "deleteCategory":
            path = path.replace("{id}", str(self.created["createCategory"]))
        elif name == "refresh":
            body = {"refresh_token": self.sign_in()["refresh_token"]}
        elif name == "logoutAll":
            self.customer = self.sign_in(self.body("changePassword")["new_password"])["access_token"]
        status, text = self.send(name, path, body)
        if name.startswith("create") and status == 201:
            self.created[name] = json.loads(text).get("id")
        # A redirect is followed to a page.
        success = next((int(code) for code in self.operations[name][2]["responses"] if code.startswith("2")), 200)
        return None if status == success else f"{name}: {status} instead of {success}: {text}"

    def run(self):
        wrong = [self.attempt("register"), self.attempt("login")]
        self.customer = self.sign_in()["access_token"]
        # No HTTP client sends a handshake.
        rest = [name for name in self.operations if name not in ("register", "login", "openSocket", *LAST)]
        # What removes comes after what reads; LAST after all.
        rest.sort(key=lambda name: self.operations[name][0] == "DELETE")
        wrong += [self.attempt(name) for name in [*rest, *LAST]]
        wrong = [one for one in wrong if one]
        print("\n".join(wrong) or f"the examples of {len(self.operations) - 1} operations succeed")
        return bool(wrong)


if __name__ == "__main__":
    sys.exit(Examples(sys.argv[1]).run())
