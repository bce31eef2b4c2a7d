// A user in a real browser, for test_browser.py: node browser.js PORT FOLDER, answers are lines of JSON.
// FOLDER: a data set whose names and captions try to run scripts.
const {chromium} = require("playwright-core");

const [port, folder] = process.argv.slice(2);
const say = (name, value) => console.log(JSON.stringify({[name]: value}));

async function open(browser, faults) {
    const page = await (await browser.newContext({viewport: {width: 1400, height: 1100}})).newPage();
    page.on("pageerror", error => faults.push(error.message));
    await page.goto(`http://127.0.0.1:${port}/`, {waitUntil: "domcontentloaded"});
    await page.waitForFunction(() => document.querySelector("#atelier_root .atelier-tabs"), null, {timeout: 120000});
    await page.evaluate(() => {
        [...document.querySelectorAll("#tabs > .tab-nav > button")][5].click();
    });
    await page.waitForTimeout(500);
    await page.evaluate(() => {
        const tabs = [...document.querySelectorAll("#train_tabs > .tab-nav > button")];
        tabs[tabs.length - 1].click();
    });
    await page.waitForSelector("#atelier_start", {state: "visible"});
    return page;
}

const text = (page, selector) => page.textContent(selector);

async function fill(page, values) {
    await page.evaluate(() => document.querySelectorAll("#atelier_root details").forEach(d => {
        d.open = true;
    }));
    for (const [id, value] of Object.entries(values)) await page.fill("#atelier_" + id, value);
}

(async() => {
    const browser = await chromium.launch({executablePath: process.env.CHROMIUM || undefined, args: ["--no-sandbox", "--disable-gpu"]});
    const faults = [];
    try {
        const page = await open(browser, faults);
        say("words", [await text(page, "#atelier_start"), await text(page, "#atelier_section_pictures > summary"), await text(page, "label[for=atelier_trainable_rank]")]);

        // what is wrong is said in a sentence
        await page.click("#atelier_start");
        await page.waitForSelector(".atelier-start .atelier-error", {state: "visible"});
        say("error", await text(page, ".atelier-start .atelier-error"));

        // the curve, and a fault in its place
        await fill(page, {loop_steps: "100", rate_schedule: "1e-3:5:9"});
        await page.waitForSelector(".atelier-place mark");
        say("fault", await text(page, ".atelier-place mark"));
        await fill(page, {
            name: "<img src=x onerror=hit=1>", data_concepts_0_folder: `"${folder}"`, data_concepts_0_trigger: "<b onmouseover=hit=1>toy",
            data_resolution: "64", data_bucket_min_px: "64", loop_steps: "4000", loop_accumulate: "1", trainable_rank: "2", rate_schedule: "1e-3",
            record_flush_every_steps: "2", record_probe_every_steps: "0", save_every_steps: "0", preview_every_steps: "3", preview_steps: "1",
            preview_prompts: "<img src=x onerror=hit=1> toy"
        });
        await page.waitForSelector(".atelier-schedule path", {state: "attached"});
        await page.click("#atelier_check");
        await page.waitForSelector(".atelier-checked .atelier-chip");
        say("checked", await text(page, ".atelier-checked"));

        await page.click("#atelier_start");
        await page.waitForSelector("#atelier_live .atelier-line-smooth", {state: "attached", timeout: 240000});
        await page.waitForSelector("#atelier_live .atelier-preview img", {timeout: 240000});
        say("running", await text(page, "#atelier_status_line"));
        await page.click("#atelier_tab_strip");
        await page.waitForSelector("#atelier_strip_growing .atelier-preview img", {timeout: 240000});
        say("grows", await page.$$eval("#atelier_strip_growing thead th", all => all.slice(1).map(head => head.textContent)));
        await page.click("#atelier_tab_train");

        // the page is closed, and another finds the run again
        await page.context().close();
        const again = await open(browser, faults);
        await again.waitForSelector("#atelier_stop", {timeout: 30000});
        say("found", await text(again, "#atelier_live h3"));
        await again.click("#atelier_pause");
        await again.waitForSelector("#atelier_go_on", {timeout: 60000});
        await again.click("#atelier_go_on");
        await again.waitForSelector("#atelier_pause", {timeout: 60000});
        await again.click("#atelier_stop");
        await again.waitForSelector("#atelier_use", {timeout: 120000});
        await again.click("#atelier_use");
        await again.waitForFunction(() => document.querySelector("#txt2img_prompt textarea").value.includes("<lora:"), null, {timeout: 60000});
        say("prompt", await again.inputValue("#txt2img_prompt textarea"));

        // previews as txt2img reads its fields
        const third = await open(browser, faults);
        await third.evaluate(() => {
            const box = document.querySelector("#txt2img_prompt textarea");
            box.value = "read from txt2img";
            updateInput(box);
        });
        await third.waitForTimeout(500);
        say("fields", await third.evaluate(async() => {
            const box = document.querySelector("#atelier_txt2img textarea"), before = box.value;
            document.querySelector("#atelier_read_txt2img").click();
            for (let i = 0; i < 100 && box.value === before; i++) await new Promise(done => setTimeout(done, 100));
            return JSON.parse(box.value).fields;
        }));

        await third.click("#atelier_tab_runs");
        await third.click(".atelier-run");
        // pictures are loaded when they come near the view
        await third.waitForSelector(".atelier-trained", {state: "attached", timeout: 60000});
        await third.$eval(".atelier-trained", image => image.closest("tr").scrollIntoView());
        await third.waitForFunction(() => [...document.querySelectorAll(".atelier-trained")].some(i => i.naturalWidth), null, {timeout: 60000});
        await third.click("#atelier_report");
        await third.waitForSelector(".atelier-report iframe", {timeout: 180000});
        await third.waitForTimeout(2000);
        say("pictures", await third.$$eval(".atelier-name", cells => cells.map(c => c.textContent)));
        say("resumes", await text(third, "#atelier_runs_resume"));
        await third.click("#atelier_runs_resume");
        await third.waitForSelector("#atelier_stop", {timeout: 60000});
        await third.click("#atelier_stop");
        await third.waitForSelector("#atelier_use", {timeout: 120000});
        const hits = [];
        for (const context of browser.contexts()) for (const p of context.pages()) hits.push(await p.evaluate(() => window.hit === undefined));
        say("harmless", hits.every(Boolean));
        say("faults", faults);
    } finally {
        await browser.close();
    }
})().catch(error => {
    say("broken", String(error).slice(0, 1500));
    process.exitCode = 1;
});
