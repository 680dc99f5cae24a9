"""The demo's page in a real browser: headless Chromium, where it is installed with its driver."""

import json
import shutil
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

_FIELD = """
return [...document.querySelectorAll('label')].filter(label => label.offsetParent !== null
  && (label.querySelector('span') || {}).textContent?.trim() === arguments[0]).map(l => l.querySelector('textarea'))[0]
"""


class Page:
    """A page in headless Chromium; `folder`: for its profile."""

    def __init__(self, url, folder):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
            *("disable-component-update", "disable-sync", "mute-audio", "window-size=1280,900"),
            f"user-data-dir={folder}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.url = url
        self.driver.get(url)

    def wait(self, condition, what, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = condition()
            except Exception:  # noqa: BLE001  (the page redraws what was just found)
                found = None
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what}: not after {seconds} s")

    def find(self, css, text=None):
        """Visible elements, those with this text if one is given."""
        found = [e for e in self.driver.find_elements("css selector", css) if e.is_displayed()]
        return [e for e in found if text is None or e.text.strip() == text]

    def click(self, css, text):
        self.wait(lambda: self.find(css, text), f"{css} {text!r}")[0].click()

    def field(self, label):
        """The text area under a label."""
        return self.wait(lambda: self.driver.execute_script(_FIELD, label), f"field {label!r}")

    def requested(self):
        """Addresses that the page has asked for (the browser asks for some of its own)."""
        logged = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"] for m in logged if m["method"] == "Network.requestWillBeSent"]
        return [p["request"]["url"] for p in sent if p["documentURL"].startswith(self.url)]
