"""Runs the scenarios of one driver against one router, one after the other, and tells of each."""
import asyncio
import inspect
import os
import time
import traceback

MODE = os.environ["STEMMA_MODE"]
SCENARIO_SECONDS_MAX = 60


def wait_for(what, holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class Suite:
    def __init__(self, driver):
        self.driver, self.scenarios = driver, []

    def scenario(self, function):
        self.scenarios.append(function)
        return function

    def run(self):
        only = os.environ.get("STEMMA_SCENARIO", "")
        failed = 0
        for function in self.scenarios:
            name = function.__name__
            if only not in name:
                continue
            began = time.monotonic()
            try:
                if inspect.iscoroutinefunction(function):
                    asyncio.run(asyncio.wait_for(function(), SCENARIO_SECONDS_MAX))
                else:
                    function()
                print(f"ok {name} {time.monotonic() - began:.2f}", flush=True)
            except BaseException:
                failed += 1
                print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        print(f"{len(self.scenarios) - failed} passed, {failed} failed", flush=True)
        raise SystemExit(failed > 0)
