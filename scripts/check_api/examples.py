"""Sends every example of the OpenAPI document unchanged to a new demo shop. Each must succeed.

examples.py RUN_FILE

Only secrets and the ids of orders, sessions, service accounts and a category to remove are replaced, as the document
cannot contain them.
"""

import json
import sys
import urllib.error
import urllib.parse
import urllib.request

from ask import get, post, read, token

# Operations that end sessions or change the password run last, in this order.
LAST = ["revokeSession", "refresh", "changePassword", "logout", "logoutAll"]
# A WebSocket handshake is no plain request, and a stream has no end.
ENDLESS = ["openSocket", "streamEvents", "streamAllEvents"]
FORM = "application/x-www-form-urlencoded"
# The operations that an order needs before another one.
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

    def content(self, name):
        return self.operations[name][2].get("requestBody", {}).get("content", {})

    def body(self, name):
        content = self.content(name)
        return content.get(FORM if FORM in content else "application/json", {}).get("example")

    def send(self, name, path=None, body=None):
        """Sends an operation, by default with its examples. Returns status and body of the response."""
        method, template, it = self.operations[name]
        path, query = path or template, []
        for parameter in it.get("parameters", []):
            if "example" in parameter and parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
            elif "example" in parameter and parameter["in"] == "query":
                query.append(f"{parameter['name']}={parameter['example']}")
        is_form = FORM in self.content(name)
        headers = {"content-type": FORM if is_form else "application/json"}
        if it.get("security"):
            headers["authorization"] = f"Bearer {self.admin if self.is_for_admins(it) else self.customer}"
        body = body or self.body(name)
        encode = urllib.parse.urlencode if is_form else json.dumps
        data = None if body is None else encode(body).encode()
        url = f"{self.url}{path}{'?' if query else ''}{'&'.join(query)}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    @staticmethod
    def is_for_admins(it):
        return it["description"].startswith("For admins")

    def sign_in(self, password=None):
        body = self.body("login")
        return post(f"{self.url}/api/v1/auth/login", body | {"password": password or body["password"]})

    def order(self, name):
        """Creates an order in the state that the operation requires, and returns its id."""
        status, text = self.send("createOrder")
        if status != 201:
            sys.exit(f"createOrder: {status} instead of 201: {text}")
        order = json.loads(text)["id"]
        for step in BEFORE.get(name, []):
            self.send(step, self.operations[step][1].replace("{id}", order))
        return order

    def attempt(self, name):
        """Sends the example of one operation. Returns the problem, or None."""
        path, body = self.operations[name][1], None
        if path.startswith("/api/v1/orders/{id}"):
            path = path.replace("{id}", self.order(name))
        elif name == "revokeSession":
            self.sign_in()
            sessions = json.loads(self.send("listSessions")[1])["items"]
            path = path.replace("{id}", next(one["id"] for one in sessions if not one["current"]))
        elif name == "deleteCategory":
            path = path.replace("{id}", str(self.created["createCategory"]["id"]))
        elif path.startswith("/api/v1/admin/service-accounts/{id}"):
            path = path.replace("{id}", self.created["createServiceAccount"]["id"])
        elif name == "issueToken":
            account = self.created["createServiceAccount"]
            body = self.body(name) | {"client_id": account["id"], "client_secret": account["client_secret"]}
        elif name == "refresh":
            body = {"refresh_token": self.sign_in()["refresh_token"]}
        elif name == "logoutAll":
            self.customer = self.sign_in(self.body("changePassword")["new_password"])["access_token"]
        status, text = self.send(name, path, body)
        if name.startswith("create") and status == 201:
            self.created[name] = json.loads(text)
        # The client follows a redirect to a page.
        success = next((int(code) for code in self.operations[name][2]["responses"] if code.startswith("2")), 200)
        return None if status == success else f"{name}: {status} instead of {success}: {text}"

    def run(self):
        wrong = [self.attempt("register"), self.attempt("login")]
        self.customer = self.sign_in()["access_token"]
        rest = [name for name in self.operations if name not in ("register", "login", *ENDLESS, *LAST)]
        # Removals run after reads; LAST runs at the end.
        rest.sort(key=lambda name: self.operations[name][0] == "DELETE")
        wrong += [self.attempt(name) for name in [*rest, *LAST]]
        wrong = [one for one in wrong if one]
        print("\n".join(wrong) or f"the examples of {len(self.operations) - len(ENDLESS)} operations succeed")
        return bool(wrong)


if __name__ == "__main__":
    sys.exit(Examples(sys.argv[1]).run())
